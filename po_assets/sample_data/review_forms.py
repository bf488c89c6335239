"""The sentence forms of a review, by what they say. How they are chosen and filled belongs to `review`."""

SERVES = (
    "{id} serves the need to {need}",
    "{id} lets {who} {action}",
    "{id} answers the need to {need}",
    "{id} helps to {need}",
)
SERVES_WEIGHTS = (4, 5, 2, 6)
SERVE_TOGETHER = (
    "{ids} serve the need to {need}",
    "{ids} together help to {need}",
    "{ids} both answer the need to {need}",
)
LIMITS_FIT = ("{ids} {cover} {topics}", "{ids} {set} clear limits for {topics}", "{ids} {fit} the concept on {topics}")

GAPS = (
    "No requirement serves the need to {need}",
    "The need to {need} has no requirement",
    "Nothing in the document helps to {need}",
    "The concept asks to {need}, and no entry covers it",
)

BREACHES = (
    "{id} lets {who} {action}, but {product} does not {never}",
    "{id} would make {product} {never}, which the concept rules out",
    "{id} breaks the promise not to {never}",
)
FOREIGN = (
    "{id} lets {who} {action}, which is no task of {a_category}",
    "{id} is about {foreign}, not about {product}",
    "{id} serves another product, since {who} can {action}",
)
FOREIGN_LIMITS = (
    "{ids} {limit} {topics} for another product",
    "{ids} {limit} {topics}, but not for {product}",
)

FINDINGS = {
    "aligned": (
        "Every need in the concept has a requirement",
        "The requirements follow the concept of {product}",
        "The document serves all that {product} must do",
        "{User} get what the concept promises them",
        "Scope and requirements of {product} agree",
        "Nothing reaches into what {product} excludes",
    ),
    "needs_adjustment": (
        "The scope is right, but the need to {missing} is left open",
        "The requirements fit {product} but are incomplete",
        "The document stays in scope and forgets to {missing}",
        "{User} are served only in part",
        "Nobody has written down how to {missing}",
        "{product} is described well, but not completely",
    ),
    "violated_non_goal": (
        "{violations} would make {product} {never}",
        "The document contradicts what {product} excludes",
        "The concept and {violations} exclude each other",
        "The concept rules out what {violations} {ask} for",
    ),
    "scope_mismatch": (
        "The requirements describe another product than {product}",
        "{violations} {do} not belong to {a_category}",
        "The document would not give {user} what the concept names",
        "Concept and requirements speak of different products",
    ),
}

READY_ACTIONS = (
    "Agree acceptance criteria for {functional}",
    "Test {limit} before the pilot",
    "Try {functional} with {user} first",
    "Plan {functional} for the first release",
    "Show {functional} to {user} early",
    "Check {limit} before the design is fixed",
)
COMPLETING_ACTIONS = (
    "Add a requirement to {missing}",
    "Write down how {product} will {missing}",
    "Ask {user} what is needed to {missing}",
    "Add an entry so that {doer} can {missing}",
)
CORRECTING_ACTIONS = (
    "Remove {violations} from the document",
    "Drop {violations} or change the concept first",
    "Move {violations} to another product",
)
RESTORING_ACTIONS = (
    "Add a requirement to {missing}",
    "Write requirements so that {doer} can {missing}",
    "Use the free place for the need to {missing}",
)
CONFIRMING_ACTIONS = (
    "Confirm with {user} that {product} does not {never}",
    "Review the document again with {user}",
    "Ask who wanted {product} to {never}",
)

NARRATIVES = {
    "aligned": (
        "The requirements cover what {product} must do and stay clear of what it excludes.",
        "{product} can {need} and {second} once this is built, and no entry leaves the concept.",
        "All needs of the concept are served, and {limits} keep the work within its limits.",
        "Built as described, {product} would {need} and {second} without leaving its scope.",
        "The document gives {user} what they were promised, and it does not {never}.",
    ),
    "needs_adjustment": (
        "The scope fits {product}, but as it stands nobody could {missing}.",
        "What is written serves the concept, yet {doer} still could not {missing}.",
        "The document is on the right way, but the concept also asks to {missing}.",
        "Most of {product} is described, while the need to {missing} is forgotten.",
        "All entries belong to {product}, but none of them helps to {missing}.",
    ),
    "violated_non_goal": (
        "{violations} would make {product} {never}, and the concept rules that out.",
        "The concept says that {product} does not {never}, so {violations} cannot be built.",
        "Other entries may fit, but {violations} {ask} for what the concept excludes.",
    ),
    "scope_mismatch": (
        "The concept asks for {a_category}, but {violations} {describe} another product.",
        "{violations} would not help {user}, because they belong to another product.",
        "Built as written, {product} could not {need}, as the document is about {foreign}.",
    ),
}
BRIEF_NARRATIVES = {
    "aligned": ("The requirements follow the concept of {product}.", "All entries fit what {product} must do."),
    "needs_adjustment": (
        "The scope fits {product}, but something is missing.",
        "The list for {product} is incomplete.",
    ),
    "conflicts": ("The entries and the concept contradict each other.",),
}
CLOSINGS = {
    "aligned": (
        "Work on {functional} can begin.",
        "It is ready for planning with {user}.",
        "The next step is a pilot at {organisation}.",
    ),
    "needs_adjustment": (
        "The gap should be closed before work begins.",
        "One more round with {user} will complete it.",
        "It should go back to {organisation} for this.",
    ),
    "conflicts": (
        "It must be corrected before work begins.",
        "The sponsor has to decide before anything is built.",
        "It should be rewritten with {user}.",
    ),
}
ASIDES = (
    "The review compared each entry with the concept.",
    "The vision above stays as it is.",
    "{Limits} were checked as well.",
)
