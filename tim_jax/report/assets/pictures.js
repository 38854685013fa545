// Samples with a slider over steps and a choice of the sampler; choices of what is shown; dots of every seed.
function samples(root) {
  const data = dataOf(root);
  const images = [...root.querySelectorAll(".tiles img")];
  const slider = root.querySelector("input.steps"), output = root.querySelector("output");
  const radios = [...root.querySelectorAll("input[type='radio']")];
  const plural = (count, word) => `${count} ${word}${count > 1 ? "s" : ""}`;

  function show() {
    const place = Number(slider.value), sampler = Number(radios.find((radio) => radio.checked)?.value ?? 0);
    const steps = plural(data.steps[place], "step");
    output.textContent = `${steps}, ${plural(data.nfe[sampler][place], "evaluation")}`;
    slider.setAttribute("aria-valuetext", steps);
    images.forEach((image, i) => {
      image.src = data.images[sampler][place][i];
      image.alt = `${data.captions[i]}, ${steps}, ${data.samplers[sampler]}`;
    });
  }
  slider.addEventListener("input", show);
  for (const radio of radios) radio.addEventListener("change", show);
  show(); // a browser may remember where the slider was
}

function choice(root) {
  const radios = [...root.querySelectorAll("input[type='radio']")];
  const parts = [...root.querySelectorAll("[data-choice]")];
  const show = () => {
    const chosen = radios.find((radio) => radio.checked).value;
    for (const part of parts) part.hidden = part.dataset.choice !== chosen;
  };
  for (const radio of radios) radio.addEventListener("change", show);
  show();
}

function dots(root) {
  const data = dataOf(root), names = Object.keys(data.distances);
  const slider = root.querySelector("input.steps"), output = root.querySelector("output");
  const panel = root.querySelector(".panel");
  const select = element("select", {"aria-label": "Distance"}, ...names.map((name) => element("option", {value: name}, `Fréchet distance ${data.distances[name]}`)));
  const plot = element("div", {class: "plot", role: "img", "aria-label": root.getAttribute("aria-label")});
  root.removeAttribute("aria-label");
  panel.append(select);
  root.append(plot);

  function draw() {
    const place = Number(slider.value), name = select.value;
    output.textContent = `${data.columns[place]} evaluation${data.columns[place] > 1 ? "s" : ""}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    const rows = data.rows.filter((row) => row.values[name][place].length);
    const every = rows.flatMap((row) => row.values[name][place]);
    const width = Math.max(280, plot.clientWidth || 600), gap = 30, height = rows.length * gap + 46;
    const label = Math.min(width * 0.36, Math.max(...rows.map((row) => row.name.length), 4) * 7.2 + 16);
    let [low, high] = [Math.min(...every), Math.max(...every)];
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    [low, high] = [low - pad, high + pad];
    const sx = scale(low, high, label, width - 12, 0);
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-hidden", "true");
    const bottom = rows.length * gap + 8;
    for (const value of linearTicks(low, high, width / 110)) {
      drawn(svg, "line", {class: "grid", x1: sx(value), x2: sx(value), y1: 4, y2: bottom});
      drawn(svg, "text", {x: sx(value), y: bottom + 18, "text-anchor": "middle"}, tick(value));
    }
    drawn(svg, "line", {class: "axis", x1: label, x2: width - 12, y1: bottom, y2: bottom});
    rows.forEach((row, i) => {
      const values = row.values[name][place], y = gap * (i + 0.5) + 4;
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      drawn(svg, "text", {x: label - 12, y: y + 4, "text-anchor": "end"}, row.name);
      const group = drawn(svg, "g", {class: `c${row.colour % COLOURS}`});
      drawn(group, "line", {class: "curve", x1: sx(mean), x2: sx(mean), y1: y - 9, y2: y + 9});
      values.forEach((value, seed) => {
        const dot = drawn(group, "circle", {class: "dot", cx: sx(value), cy: y, r: 5});
        dot.setAttribute("data-tip", `${row.name}, ${data.columns[place]} evaluations, run ${seed + 1}: ${told(value)}`);
      });
    });
    plot.replaceChildren(svg);
  }
  slider.addEventListener("input", draw);
  select.addEventListener("change", draw);
  draw();
  let width = plot.clientWidth;
  new ResizeObserver(() => {
    if (plot.clientWidth !== width) {
      width = plot.clientWidth;
      draw();
    }
  }).observe(plot);
}
