// Brings the components of the page to life, each by itself: what is wrong with one leaves the others as they are.
const COMPONENTS = {chart, tools, samples, choice, dots};
for (const root of document.querySelectorAll("[data-component]")) {
  try {
    COMPONENTS[root.dataset.component](root);
  } catch (error) {
    console.error(root.dataset.component, error);
  }
}

// Tables and dots say more of a value where one points at it.
document.addEventListener("pointerover", (event) => {
  const of = event.target.closest?.("[data-tip]");
  if (of) {
    const box = of.getBoundingClientRect();
    showTip(box.right - 8, box.top - 18, of.dataset.tip);
  }
});
document.addEventListener("pointerout", (event) => {
  if (event.target.closest?.("[data-tip]")) hideTip();
});
document.addEventListener("scroll", () => {
  if (!document.activeElement?.matches(".plot")) hideTip();
}, {passive: true});

// Charts in what was closed have had no width; they draw when they get one. On paper everything is open.
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});

// The navigation says which section is read.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const seen = new Set();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) seen.add(entry.target.id); else seen.delete(entry.target.id);
  }
  const first = [...links.keys()].find((id) => seen.has(id));
  for (const [id, link] of links) {
    if (id === first) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
  }
}, {rootMargin: "-80px 0px -55% 0px"});
for (const section of document.querySelectorAll("main > section")) watcher.observe(section);
