"use strict";
document.documentElement.classList.add("js");

for (const input of document.querySelectorAll(".slide input")) {
  const card = input.closest(".card");
  const show = () => {
    card.style.setProperty("--cut", input.value + "%");
    card.classList.toggle("at-base", Number(input.value) > 75);
    card.classList.toggle("at-adapted", Number(input.value) < 25);
    input.setAttribute("aria-valuetext", `${input.value} % base, ${100 - input.value} % adapted`);
  };
  input.addEventListener("input", show);
  for (const stack of card.querySelectorAll(".stack")) {
    const follow = (event) => {
      const box = stack.getBoundingClientRect();
      input.value = Math.round((100 * (event.clientX - box.left)) / box.width);
      show();
    };
    stack.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") follow(event); });
    stack.addEventListener("pointerdown", follow);
  }
  show();
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value === undefined) return cell.textContent.trim();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const way = head.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
    const sign = way === "ascending" ? 1 : -1;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way);
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a, column), key(b, column)];
      if (x === null || y === null) return (x === null) - (y === null);
      if (typeof x === "number" && typeof y === "number") return sign * (x - y);
      return sign * String(x).localeCompare(String(y), undefined, { numeric: true });
    });
    body.append(...rows);
  }));
}

const drawn = JSON.parse(document.getElementById("curves").textContent);
const plots = [...document.querySelectorAll(".plot")].map((plot) => {
  const panel = drawn[Number(plot.dataset.panel)];
  const figure = plot.closest(".panel");
  const svg = plot.querySelector("svg");
  const rule = svg.querySelector(".rule");
  return {
    plot, panel, svg, cursor: svg.querySelector(".cursor"), left: Number(rule ? rule.getAttribute("x1") : 0),
    right: Number(rule ? rule.getAttribute("x2") : svg.viewBox.baseVal.width),
    step: figure.querySelector(".step"), values: [...figure.querySelectorAll(".key b")],
  };
});
const nearest = (steps, wanted) => {
  let best = 0;
  steps.forEach((step, i) => { if (Math.abs(step - wanted) < Math.abs(steps[best] - wanted)) best = i; });
  return best;
};
const told = (value) => (value === null ? "none" : String(Number(value.toPrecision(5))));
const showStep = (wanted) => {
  for (const p of plots) {
    if (!p.panel.steps.length) continue;
    const i = nearest(p.panel.steps, wanted);
    const step = p.panel.steps[i];
    const x = p.left + ((p.right - p.left) * (step - p.panel.first)) / (p.panel.last - p.panel.first);
    p.cursor.setAttribute("x1", x);
    p.cursor.setAttribute("x2", x);
    p.cursor.classList.add("on");
    p.step.textContent = `step ${step}`;
    p.values.forEach((place, k) => { place.textContent = told(p.panel.lines[k][i]); });
    p.plot.setAttribute("aria-valuenow", step);
    p.plot.setAttribute("aria-valuetext", p.step.closest(".readout").textContent.replace(/\s+/g, " ").trim());
  }
};
for (const p of plots) {
  const follow = (event) => {
    const box = p.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * p.svg.viewBox.baseVal.width;
    showStep(p.panel.first + ((x - p.left) / (p.right - p.left)) * (p.panel.last - p.panel.first));
  };
  p.plot.addEventListener("pointermove", follow);
  p.plot.addEventListener("pointerdown", follow);
  p.plot.addEventListener("keydown", (event) => {
    const steps = p.panel.steps;
    const now = nearest(steps, Number(p.plot.getAttribute("aria-valuenow")));
    const big = Math.max(1, Math.round(steps.length / 10));
    const to = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, PageDown: now - big, PageUp: now + big, Home: 0, End: steps.length - 1 }[event.key];
    if (to === undefined || !steps.length) return;
    event.preventDefault();
    showStep(steps[Math.min(Math.max(to, 0), steps.length - 1)]);
  });
}
