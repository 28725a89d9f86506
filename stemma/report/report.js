"use strict";
// Without this script the page shows query and original side by side; with it there is a slider between them.
document.documentElement.classList.add("js");
document.addEventListener("input", ({ target }) => {
  const view = target.closest(".compare");
  if (!view || target.type !== "range") return;
  view.style.setProperty(`--${target.name}`, `${target.value}%`);
  target.setAttribute("aria-valuetext", `${target.value}%`);
  if (target.nextElementSibling?.tagName === "OUTPUT") target.nextElementSibling.value = `${target.value}%`;
});
// A part of the query and the donor that gave it light up together, whichever is pointed at or has the focus.
const light = (target) => {
  const one = target?.closest("[data-part]") ?? document.activeElement?.closest("[data-part]");
  for (const lit of document.querySelectorAll(".is-lit")) lit.classList.remove("is-lit");
  const twins = one?.closest(".parts").querySelectorAll(`[data-part="${one.dataset.part}"]`) ?? [];
  for (const twin of twins) twin.classList.add("is-lit");
};
document.addEventListener("pointerover", ({ target }) => light(target));
document.addEventListener("focusin", ({ target }) => light(target));
document.addEventListener("focusout", ({ relatedTarget }) => light(relatedTarget));
