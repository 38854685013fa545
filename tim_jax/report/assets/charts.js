// Curves on inline SVG. A chart's data: {x: {label, log}, y: {label, log}, series: [{name, x, y, spread, group, colour,
// dash, shade}], lines: [{name, y}], points, smooth, shared}, or `panels`, of which one is seen at a time and which have a name
// and replace what the chart itself says. A null in y is a gap. Charts that are shared obey the tools of their section.
"use strict";
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 7;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function drawn(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function dataOf(root) {
  return JSON.parse(root.querySelector("script[type='application/json']").textContent);
}

const told = (value) => {
  if (value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6)) {
    return Number(value.toPrecision(4)).toLocaleString("en", {maximumFractionDigits: 7});
  }
  return value.toExponential(2).replace("e-", "e−").replace("e+", "e");
};

const tick = (value, tiny = false) => {
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3) || tiny) return String(Number(value.toPrecision(3)).toExponential()).replace("e-", "e−").replace("e+", "e");
  return Number(value.toPrecision(6)).toLocaleString("en", {maximumFractionDigits: 7});
};

// Maps a domain to pixels. log: 0 for linear, else the base.
function scale(low, high, from, to, log) {
  const f = log ? Math.log : (value) => value;
  const [a, b] = [f(low), f(high)];
  const map = (value) => from + ((f(value) - a) / (b - a || 1)) * (to - from);
  map.low = low;
  map.high = high;
  map.log = log;
  return map;
}

function linearTicks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function logTicks(low, high, count) {
  for (const digits of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9]]) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const digit of digits) {
        const value = Number(`${digit}e${power}`);
        if (value >= low * 0.9999 && value <= high * 1.0001) found.push(value);
      }
    }
    if (found.length >= 3) return found.filter((_, i) => i % Math.ceil(found.length / (count + 2)) === 0);
  }
  return linearTicks(low, high, Math.min(count, 4));
}

// A moving average that forgets along x, so that points that were left out do not count; null stays a gap.
function smoothed(x, y, amount) {
  if (!amount) return y;
  const span = (x[x.length - 1] - x[0]) * amount * 0.12 || 1;
  let mean = 0, weight = 0, before = null;
  return y.map((value, i) => {
    if (value === null) return null;
    const keep = before === null ? 0 : Math.exp(-(x[i] - before) / span);
    before = x[i];
    mean = keep * mean + (1 - keep || 1) * value;
    weight = keep * weight + (1 - keep || 1);
    return mean / weight;
  });
}

function nearestIndex(x, at) {
  let low = 0, high = x.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] < at) low = middle; else high = middle;
  }
  return Math.abs(x[low] - at) <= Math.abs(x[high] - at) ? low : high;
}

const tip = document.getElementById("tip");

function showTip(x, y, ...children) {
  tip.replaceChildren(...children);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 16 + box.width > window.innerWidth - 8 ? x - 16 - box.width : x + 16;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, Math.min(y - box.height / 2, window.innerHeight - box.height - 8))}px`;
}

const hideTip = () => { tip.hidden = true; };

// A box for a logarithmic axis and a slider for smoothing; change: called with what is changed of a chart's state.
function toolsOf(logarithmic, smoothing, change) {
  const log = element("input", {type: "checkbox", class: "log", checked: logarithmic});
  log.addEventListener("change", () => change({log: log.checked}));
  const smooth = element("input", {type: "range", min: "0", max: "1", step: "0.05", value: "0", class: "smooth"});
  smooth.addEventListener("input", () => change({smooth: Number(smooth.value)}));
  return [element("label", {}, log, "log scale"), ...(smoothing ? [element("label", {}, "smooth", smooth)] : [])];
}

// The tools of all charts of a section.
function tools(root) {
  const change = (detail) => {
    for (const each of root.closest("section").querySelectorAll("[data-component='chart']")) {
      each.dispatchEvent(new CustomEvent("chart-tools", {detail}));
    }
  };
  root.append(...toolsOf(false, true, change));
}

function chart(root) {
  const data = dataOf(root);
  const panels = data.panels || [{}];
  const state = {panel: 0, log: null, smooth: 0, hidden: new Set(), at: null};
  const plot = element("div", {class: "plot", tabindex: "0", role: "img", "aria-label": root.getAttribute("aria-label")});
  const tools = element("div", {class: "tools"});
  const legend = element("ul", {class: "legend", "aria-label": "Curves"});
  root.removeAttribute("aria-label");
  root.append(tools, plot, legend);
  const spec = () => ({...data, ...panels[state.panel], y: {...data.y, ...panels[state.panel].y}});
  let view = null;

  const all = () => spec().series.map((series, i) => ({
    ...series, group: series.group || series.name,
    look: series.shade !== undefined ? `r${series.shade}` : `c${(series.colour ?? (data.series?.some((each) => each.shade !== undefined) ? 1 : i)) % COLOURS}`,
    dash: series.dash || (series.colour ?? i) >= COLOURS,
  }));

  function draw() {
    const {x: xAxis, lines = [], points} = spec(), yAxis = spec().y;
    const width = Math.max(240, plot.clientWidth || 600);
    const height = Math.round(Math.min(360, Math.max(190, width * (width > 600 ? 0.4 : 0.56))));
    const shown = all().filter((series) => !state.hidden.has(series.group))
      .map((series) => ({...series, line: smoothed(series.x, series.y, state.smooth)}));
    const positive = (value) => value !== null && (!logY() || value > 0);
    let low = Infinity, high = -Infinity, left = Infinity, right = -Infinity;
    for (const series of shown) {
      series.x.forEach((x, i) => {
        left = Math.min(left, x);
        right = Math.max(right, x);
        const half = series.spread ? series.spread[i] : 0;
        for (const value of [series.y[i] - half, series.y[i] + half, series.y[i]]) {
          if (series.y[i] !== null && positive(value)) {
            low = Math.min(low, value);
            high = Math.max(high, value);
          }
        }
      });
    }
    for (const line of lines) if (positive(line.y) && shown.length) [low, high] = [Math.min(low, line.y), Math.max(high, line.y)];
    if (!(low <= high)) [low, high] = [logY() ? 0.1 : 0, 1];
    if (!(left <= right)) [left, right] = [0, 1];
    if (logY()) {
      const pad = Math.max((high / low) ** 0.06, 1.02);
      [low, high] = [low / pad, high * pad];
    } else {
      const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
      [low, high] = [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
    }
    if (left === right) [left, right] = xAxis.log ? [left / 2, right * 2] : [left - 1, right + 1];
    const yTicks = logY() ? logTicks(low, high, height / 44) : linearTicks(low, high, height / 48);
    const tiny = !logY() && Math.max(...yTicks.map(Math.abs)) < 0.0095;
    const named = (value) => tick(value, tiny && value !== 0);
    const room = Math.max(...yTicks.map((value) => named(value).length), 2) * 7 + 12;
    const box = {left: room, right: width - 18, top: 12, bottom: height - 40};
    const sx = scale(left, right, box.left + (points ? 8 : 0), box.right - (points ? 8 : 0), xAxis.log);
    const sy = scale(low, high, box.bottom, box.top, logY() ? 10 : 0);
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-hidden", "true");
    for (const value of yTicks) {
      drawn(svg, "line", {class: "grid", x1: box.left, x2: box.right, y1: sy(value), y2: sy(value)});
      drawn(svg, "text", {x: box.left - 8, y: sy(value) + 4, "text-anchor": "end"}, named(value));
    }
    const marks = xAxis.log ? [...new Set(shown.flatMap((series) => series.x))].sort((a, b) => a - b)
      : linearTicks(left, right, width / 95);
    const order = xAxis.log ? marks.filter((value) => Number.isInteger(Math.log2(value))).concat(marks.filter((value) => !Number.isInteger(Math.log2(value)))) : marks;
    const taken = [];
    for (const value of order) {
      const at = sx(value);
      if (taken.some((other) => Math.abs(other - at) < 34)) continue;
      taken.push(at);
      drawn(svg, "line", {class: "axis", x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4});
      drawn(svg, "text", {x: at, y: box.bottom + 18, "text-anchor": "middle"}, tick(value));
    }
    drawn(svg, "line", {class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom});
    drawn(svg, "text", {x: (box.left + box.right) / 2, y: height - 4, "text-anchor": "middle"}, xAxis.label || "");
    for (const [i, line] of lines.entries()) {
      if (!positive(line.y) || !shown.length) continue;
      drawn(svg, "line", {class: "floorline", x1: box.left, x2: box.right, y1: sy(line.y), y2: sy(line.y)});
      const [x, anchor] = i % 2 ? [box.left + 4, "start"] : [box.right, "end"]; // labels of close lines do not meet
      drawn(svg, "text", {x, y: sy(line.y) - 5, "text-anchor": anchor}, `${line.name} ${told(line.y)}`);
    }
    const path = (xs, ys) => {
      let text = "", open = false;
      xs.forEach((x, i) => {
        if (!positive(ys[i])) { open = false; return; }
        text += `${open ? "L" : "M"}${sx(x).toFixed(1)} ${sy(ys[i]).toFixed(1)}`;
        open = true;
      });
      return text;
    };
    for (const series of shown) {
      const group = drawn(svg, "g", {class: series.look});
      if (series.spread && series.spread.some((value) => value > 0)) {
        const edge = (sign) => series.x.map((x, i) => {
          const value = series.y[i] + sign * series.spread[i];
          return `${sx(x).toFixed(1)} ${sy(logY() ? Math.max(value, low) : value).toFixed(1)}`;
        });
        drawn(group, "path", {class: "band", d: `M${edge(1).join("L")}L${edge(-1).reverse().join("L")}Z`});
      }
      if (state.smooth) drawn(group, "path", {class: "curve raw", d: path(series.x, series.y)});
      drawn(group, "path", {class: `curve${series.dash ? " dash" : ""}`, d: path(series.x, series.line)});
      if (points || series.x.length === 1) {
        series.x.forEach((x, i) => {
          if (positive(series.y[i])) drawn(group, "circle", {class: "dot", cx: sx(x), cy: sy(series.y[i]), r: 4});
        });
      }
    }
    const overlay = drawn(svg, "g", {});
    plot.replaceChildren(svg);
    view = {svg, overlay, sx, sy, box, shown, width, height, positive, xs: [...new Set(shown.flatMap((series) => series.x))].sort((a, b) => a - b)};
  }

  const logY = () => state.log ?? Boolean(spec().y.log);

  // Shows the values nearest to x, beside the pointer, or beside the cursor where there is none.
  function point(at, pointer) {
    if (!view || !view.xs.length) return;
    state.at = view.xs[nearestIndex(view.xs, at)];
    view.overlay.replaceChildren();
    const px = view.sx(state.at);
    drawn(view.overlay, "line", {class: "cursor", x1: px, x2: px, y1: view.box.top, y2: view.box.bottom});
    const rows = [];
    for (const series of view.shown) {
      const i = nearestIndex(series.x, state.at), value = series.y[i];
      if (Math.abs(view.sx(series.x[i]) - px) > 6 || value === null) continue;
      const line = series.line[i];
      const spread = series.spread && series.spread[i] ? ` ± ${Number(series.spread[i].toPrecision(2))}` : "";
      const mean = state.smooth ? ` (mean ${told(line)})` : "";
      if (view.positive(line)) {
        const holder = drawn(view.overlay, "g", {class: series.look});
        drawn(holder, "circle", {class: "dot", cx: view.sx(series.x[i]), cy: view.sy(line), r: 4.5});
      }
      rows.push([value, element("div", {}, element("span", {class: `key ${series.look}${series.dash ? " dash" : ""}`}),
        element("span", {}, series.name), element("span", {}, `${told(value)}${spread}${mean}`))]);
    }
    if (rows.length > 6) rows.sort((a, b) => b[0] - a[0]);
    const title = element("b", {}, `${spec().x.label || "x"} ${tick(state.at)}`);
    const box = view.svg.getBoundingClientRect();
    const [x, y] = pointer || [box.left + (px / view.width) * box.width, box.top + box.height / 2];
    showTip(x, y, title, ...rows.map((row) => row[1]));
  }

  function leave() {
    state.at = null;
    if (view) view.overlay.replaceChildren();
    hideTip();
  }

  plot.addEventListener("pointermove", (event) => {
    const box = view.svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * view.width;
    let best = view.xs[0];
    for (const x of view.xs) if (Math.abs(view.sx(x) - at) < Math.abs(view.sx(best) - at)) best = x;
    point(best, [event.clientX, event.clientY]);
  });
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
  document.addEventListener("scroll", () => {
    if (state.at !== null && document.activeElement === plot) point(state.at);
    else if (state.at !== null) leave();
  }, {passive: true});
  plot.addEventListener("keydown", (event) => {
    const xs = view.xs, now = state.at === null ? -1 : xs.indexOf(state.at);
    const stride = event.shiftKey ? Math.max(1, Math.round(xs.length / 20)) : 1;
    const moves = {ArrowRight: Math.min(now + stride, xs.length - 1), ArrowLeft: Math.max(now < 0 ? xs.length - 1 : now - stride, 0), Home: 0, End: xs.length - 1};
    if (event.key === "Escape") leave();
    if (!(event.key in moves)) return;
    event.preventDefault();
    point(xs[moves[event.key]]);
  });

  function drawLegend() {
    const groups = new Map();
    for (const series of all()) if (!groups.has(series.group)) groups.set(series.group, series);
    legend.hidden = groups.size < 2;
    legend.replaceChildren(...[...groups].map(([name, series]) => {
      const key = element("span", {class: `key ${series.look}${series.dash ? " dash" : ""}`});
      const button = element("button", {type: "button", "aria-pressed": String(!state.hidden.has(name))}, key, name);
      button.addEventListener("click", () => {
        if (!state.hidden.delete(name)) state.hidden.add(name);
        button.setAttribute("aria-pressed", String(!state.hidden.has(name)));
        draw();
      });
      return element("li", {}, button);
    }));
  }

  if (panels.length > 1) {
    const select = element("select", {"aria-label": "What is shown"}, ...panels.map((panel, i) => element("option", {value: i}, panel.name)));
    select.addEventListener("change", () => {
      state.panel = Number(select.value);
      drawLegend();
      draw();
    });
    tools.append(select);
  } else {
    tools.append(element("span", {class: "unit"}, spec().y.label || ""));
  }
  if (data.shared) {
    tools.hidden = true;
    root.addEventListener("chart-tools", (event) => { Object.assign(state, event.detail); draw(); });
  } else {
    tools.append(...toolsOf(logY(), data.smooth, (change) => { Object.assign(state, change); draw(); }));
  }
  drawLegend();
  draw();
  let width = plot.clientWidth;
  new ResizeObserver(() => {
    if (plot.clientWidth !== width) {
      width = plot.clientWidth;
      leave();
      draw();
    }
  }).observe(plot);
}
