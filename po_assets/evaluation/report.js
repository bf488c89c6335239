"use strict";
// The case list: filter, sort, open all. Without scripts the list is whole, and each case opens by itself.
const list = document.getElementById("case-list");
const cases = [...list.children];
const byId = (id) => document.getElementById(id);
const tests = {
  all: () => true,
  wrong: (one) => one.dataset.wrong === "yes",
  invalid: (one) => one.dataset.valid === "no",
  worse: (one) => Number(one.dataset.difference) < 0,
};
const orders = {
  score: (a, b) => a.dataset.score - b.dataset.score,
  difference: (a, b) => a.dataset.difference - b.dataset.difference,
  id: (a, b) => a.id.localeCompare(b.id, undefined, { numeric: true }),
};
function show() {
  const text = byId("text").value.toLowerCase();
  const kept = (one) =>
    tests[byId("show").value](one) &&
    (byId("tier").value === "" || one.dataset.tier === byId("tier").value) &&
    one.textContent.toLowerCase().includes(text);
  cases.forEach((one) => (one.hidden = !kept(one)));
  list.append(...cases.sort(orders[byId("order").value]));
  byId("shown").textContent = `${cases.filter((one) => !one.hidden).length} of ${cases.length} cases`;
}
["text", "show", "tier", "order"].forEach((id) => byId(id).addEventListener("input", show));
const openAll = (open) => () => cases.filter((one) => !one.hidden).forEach((one) => (one.open = open));
byId("open").addEventListener("click", openAll(true));
byId("close").addEventListener("click", openAll(false));
function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", openTarget);
byId("controls").hidden = false;
show();
openTarget();
