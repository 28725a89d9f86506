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
