// Values under the pointer, or at the left and right arrow keys when a chart has the focus.
for (const figure of document.querySelectorAll("figure[data-points]")) {
  const chart = JSON.parse(figure.dataset.points);
  const svg = figure.querySelector("svg"), rule = figure.querySelector(".rule"), tip = figure.querySelector(".tip");
  const box = svg.viewBox.baseVal;
  let at = -1;
  const place = (index) => {
    at = Math.max(0, Math.min(chart.x.length - 1, index));
    const where = chart.left + ((chart.x[at] - chart.from) / (chart.to - chart.from || 1)) * chart.width;
    rule.setAttribute("x1", where);
    rule.setAttribute("x2", where);
    const lines = chart.series.map(([name, values]) => `${name} ${values[at] === null ? "not finite" : values[at]}`);
    tip.textContent = [`update ${chart.x[at].toLocaleString("en")}`, ...lines].join("\n");
    const area = svg.getBoundingClientRect(), frame = figure.getBoundingClientRect();
    const x = area.left - frame.left + (where / box.width) * area.width;
    const left = x + 12 + tip.offsetWidth > frame.width ? x - 12 - tip.offsetWidth : x + 12;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${area.top - frame.top + 8}px`;
    rule.style.visibility = tip.style.visibility = "visible";
  };
  const hide = () => { rule.style.visibility = tip.style.visibility = "hidden"; };
  svg.addEventListener("pointermove", (event) => {
    const area = svg.getBoundingClientRect();
    const share = (((event.clientX - area.left) / area.width) * box.width - chart.left) / chart.width;
    const x = chart.from + share * (chart.to - chart.from);
    let low = 0, high = chart.x.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (chart.x[middle] < x) low = middle; else high = middle;
    }
    place(x - chart.x[low] < chart.x[high] - x ? low : high);
  });
  svg.addEventListener("pointerleave", hide);
  figure.addEventListener("blur", hide);
  figure.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    place(at < 0 ? chart.x.length - 1 : at + (event.key === "ArrowRight" ? 1 : -1));
  });
}
