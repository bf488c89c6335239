"""The sentence forms of the reviews of made conflicts rows, by what they say. How they are filled belongs to `review`.

`{vp}` is a verb phrase ("bill drivers"), `{np}` a thing ("tax advice"); a form that has either is only used for its
kind. `{ids}` are requirement ids; what goes with their number are the endings `{s}` (one asks, two ask) and `{es}`, and
the words `{was}`, `{it}`, `{its}`. All other words come from the documents: `{product}`, `{other}` (the product that
the requirements name, else "another product"), `{user}`, `{gist}` (a requirement's own words), `{capability}`,
`{fitting}` (ids of the requirements that fit).
"""

SUMMARY_BREACH = (
    "{ids} would make {product} {vp}",
    "The document asks {product} to {vp} against its own vision",
    "{product} was planned not to {vp}, and {ids} would change that",
    "{ids} would bring {np} into {product}",
    "The document asks {product} for {np} against its own vision",
    "{product} leaves {np} out, and {ids} would change that",
    "{ids} and the non-goals of {product} exclude each other",
    "What {ids} ask{s} for is left out of {product} on purpose",
    "The vision and {ids} contradict each other",
    "{product} cannot keep its non-goals and have {ids} too",
    "{fitting} fit {product}, but {ids} cross{es} its limits",
)
SUMMARY_SCOPE = (
    "The requirements describe {other} and not {product}",
    "The vision speaks of {product}, the requirements of something else",
    "{ids} do{es} not belong to {product}",
    "The document would not give {user} what {product} promises",
    "Built as written, the result would not be {product}",
    "No entry of the document is about {product}",
    "Someone wrote these requirements for {other}",
    "{product} and this document have no task in common",
)

BREACH = (
    "{id} would have {product} {vp}, which the vision excludes",
    "{id} asks to {vp}, a non-goal of {product}",
    "{id} breaks the promise not to {vp}",
    "{id} says that {gist}, but {product} does not {vp}",
    "{id} wants {product} to {vp}, and the vision rules that out",
    "{id} goes against the decision not to {vp}",
    "{id} would add {np}, which the vision excludes",
    "{id} asks for {np}, a non-goal of {product}",
    "{id} brings in {np}, although {product} leaves it out",
    "{id} goes against the decision to leave out {np}",
    "{id} counts on {np}, and the vision rules that out",
)
FOREIGN = (
    "{id} says that {gist}, which is no task of {product}",
    "{id} wants that {gist}, and {product} is not made for that",
    "{id} describes how {gist}, but {product} does something else",
    "{id} belongs to {other}",
    "{id} has no place in {product}",
    "{id} serves {other} and not {product}",
    "{id} answers no need of {user}",
    "{id} leads away from the need to {capability}",
)
FOREIGN_LIMITS = (
    "{ids} set{s} limits for {other}",
    "{ids} matter{s} to {other} and not to {product}",
    "{ids} {was} written with {other} in mind",
    "{ids} bind{s} {other}, so {product} gains nothing",
)

FITS = (
    "{ids} fit{s} the scope of {product}",
    "{ids} stay{s} within the vision",
    "{ids} serve{s} {product} as planned",
    "{ids} can stay as written",
)

MISSING = (
    "No requirement helps to {vp}",
    "The need to {vp} has no requirement",
    "Nothing in the document lets anyone {vp}",
    "Nobody wrote down how to {vp}",
    "The vision names the need to {vp}, and no entry covers it",
    "How {product} will {vp} is left open",
    "No requirement covers {np}",
    "Nothing in the document leads to {np}",
    "The vision names {np}, and no entry covers it",
    "There is no entry on {np}",
)
NO_BOUNDARY = (
    "No constraint says that {product} does not {vp}",
    "The document never states that {product} will not {vp}",
    "A limit that keeps {product} from being used to {vp} is missing",
    "No constraint rules out {np}",
    "The document never states that {np} is out of scope",
    "A limit that keeps {np} out of {product} is missing",
)

CORRECT_BREACH = (
    "Remove {ids} from the requirements of {product}",
    "Strike {ids} before anyone plans {product}",
    "Drop {ids} or change the vision of {product} first",
    "Take {ids} out and tell {user} why",
    "Ask {user} who wanted {ids}, then remove {it}",
    "Rewrite {ids} so that {product} does not {vp}",
    "Rewrite {ids} so that {np} stays out",
    "Plan {ids} for a product of {its} own and not for {product}",
)
CORRECT_SCOPE = (
    "Find out which product {ids} {was} written for",
    "Replace the document by one that was written for {product}",
    "Send the document back and ask for one about {product}",
    "Move {ids} to {other}",
    "Take {ids} out before anyone plans with {it}",
    "Ask {user} for the requirements of {product}",
)
RESTORE = (
    "Add a requirement to {vp}",
    "Write an entry so that {product} can {vp}",
    "Describe how {user} will {vp}",
    "Agree with {user} on requirements to {vp}",
    "Add a requirement on {np}",
    "Describe {np} in an entry of its own",
    "Agree with {user} on what {np} must bring",
)
SET_BOUNDARY = (
    "Confirm with {user} that {product} does not {vp}",
    "Add a constraint that {product} does not {vp}",
    "Write down as a limit that nobody can {vp} with {product}",
    "Confirm with {user} that {np} stays out of {product}",
    "Add a constraint that rules out {np}",
    "Write down as a limit that {product} comes without {np}",
)

TELL_BREACH = (
    "{ids} would make {product} {vp}, and the vision excludes exactly that.",
    "The vision says that {product} does not {vp}, so {ids} cannot be built as written.",
    "Whoever builds {ids} will {vp} with {product}, which nobody agreed to.",
    "{ids} would bring {np} into {product}, and the vision excludes exactly that.",
    "The vision leaves out {np}, so {ids} cannot be built as written.",
    "With {ids} the product would take on {np}, which nobody agreed to.",
    "{fitting} can be planned for {product}, but {ids} and the non-goals cannot both hold.",
)
TELL_SCOPE = (
    "The vision is about {product}, but {ids} would build {other}.",
    "{ids} would not help {user}, because the document was written for {other}.",
    "Built as written, {product} could not {vp}, and no entry comes near that.",
    "Built as written, {product} would come without {np}, and no entry comes near that.",
    "None of {ids} leads to what the vision promises to {user}.",
)
CLOSE = (
    "{product} cannot be planned before this is settled.",
    "Until then {product} should not be estimated.",
    "The authors should talk to {user} first.",
    "What was promised to {user} stays the measure.",
    "The vision of {product} stays as it is.",
    "Whoever owns {product} has to decide.",
    "A corrected document can be shown to {user} again.",
    "Everything else about {product} can wait until this is clear.",
)
