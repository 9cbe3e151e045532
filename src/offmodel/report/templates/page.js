"use strict";
// Comforts only: the page says everything without this. Text is set by textContent, never parsed as markup.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const { checkpoints } = JSON.parse(document.getElementById("data").textContent);
  document.documentElement.classList.add("js");

  // Check boxes show and hide parts of the frontier.
  const figure = document.querySelector("svg.frontier");
  for (const box of all("#frontier input")) {
    const { shows, method } = box.dataset;
    const parts = shows ? all(shows, figure) : all("[data-method]", figure).filter((part) => part.dataset.method === method);
    const update = () => parts.forEach((part) => part.toggleAttribute("hidden", !box.checked));
    box.addEventListener("change", update);
    update();
  }

  // A picked organism: the frontier dims the others, every other view shows its own part alone.
  const pick = (select) => {
    const view = select.dataset.pick;
    if (view === "frontier") {
      for (const part of all("[data-who]", figure)) part.classList.toggle("dim", ![part.dataset.who, "mean"].includes(select.value));
    } else {
      for (const part of all(`[data-view="${view}"]`)) part.toggleAttribute("hidden", part.dataset.who !== select.value);
    }
  };
  for (const select of all("[data-pick]")) {
    select.addEventListener("change", () => pick(select));
    pick(select);
  }
  const transcripts = document.querySelector('[data-pick="transcripts"]');
  const showTranscripts = (organism) => {
    if (!transcripts || ![...transcripts.options].some((option) => option.value === organism)) return;
    transcripts.value = organism;
    pick(transcripts);
  };
  for (const link of all("a[data-organism]")) link.addEventListener("click", () => showTranscripts(link.dataset.organism));

  // What a point of the frontier stands for.
  const tip = document.getElementById("tip");
  let shown = null;
  const element = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  const keyOf = (point) => point.getAttribute("href").slice(1);
  const show = (point) => {
    const card = checkpoints[keyOf(point)];
    const list = document.createElement("dl");
    for (const [term, number, count] of card.lines) list.append(element("dt", term), element("dd", number), element("dd", count));
    tip.replaceChildren(element("b", card.title), element("div", card.place), list);
    tip.hidden = false;
    const at = point.querySelector(".target").getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const left = Math.min(at.right + 8, document.documentElement.clientWidth - size.width - 8);
    const below = at.bottom + 8 + size.height < window.innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below ? at.bottom + 8 : Math.max(8, at.top - size.height - 8)}px`;
    shown = point;
  };
  const hide = () => {
    tip.hidden = true;
    shown = null;
  };

  // One tab stop for all points; arrow keys go to the next one to the left or right.
  const points = all("a.point").sort((a, b) => a.querySelector(".target").cx.baseVal.value - b.querySelector(".target").cx.baseVal.value);
  const visible = (point) => !point.closest("[hidden]") && !point.classList.contains("dim");
  points.forEach((point, i) => {
    point.setAttribute("tabindex", i ? -1 : 0);
    const card = checkpoints[keyOf(point)];
    point.setAttribute("aria-label", [card.title, card.place, ...card.lines.map((line) => line.join(" "))].join(", "));
    point.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && show(point));
    point.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    point.addEventListener("focus", () => point.matches(":focus-visible") && show(point));
    point.addEventListener("blur", hide);
    point.addEventListener("click", (event) => {
      // A finger cannot hover: its first tap shows, its second goes.
      if (event.pointerType === "touch" && shown !== point) {
        event.preventDefault();
        show(point);
        return;
      }
      showTranscripts(point.dataset.who);
      hide();
    });
    point.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      const open = points.filter(visible);
      const next = open[(open.indexOf(point) + step + open.length) % open.length];
      point.setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    });
  });
  document.addEventListener("scroll", hide, { passive: true });
  document.addEventListener("pointerdown", (event) => event.target.closest("a.point") || hide());

  // Columns sort by their number, else by their text; what has no number goes last.
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
        const compare = (a, b) => {
          if (a === "" || b === "") return (a === "") - (b === "");
          return (up ? 1 : -1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
        };
        body.append(...[...body.rows].sort((one, other) => compare(key(one), key(other))));
      });
    });
  }
})();
