// Explorers of the book: plain scripts over embedded data, no library, no network.
// A page has one copy, whichever explorer comes first. Each function fills one element; everything that moves is a native control, so the keyboard reaches it.
window.iumadExplorers = window.iumadExplorers || (function () {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#2A8FBD", "#7F7F7F", "#6A3D9A", "#8C510A", "#444444"];
  const DASHES = ["", "6 3", "2 3"];
  const OUTLINE = [0, 229, 255];
  const SIZE = 256;
  let serial = 0;

  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function svg(tag, attributes, text) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // Controls return an object with a value; `changed` is called after each change.
  function choice(parent, label, options, changed, start = 0) {
    const id = "iumad-control-" + ++serial;
    const select = el("select", { id });
    const fill = (list, wanted) => {
      const kept = wanted === undefined ? select.value : String(wanted);
      select.replaceChildren(...list.map((text, i) => el("option", { value: String(i) }, text)));
      if (Number(kept) < list.length && kept !== "") select.value = kept;
    };
    fill(options);
    select.value = String(Math.min(start, options.length - 1));
    select.addEventListener("change", changed);
    parent.append(el("span", { class: "control" }, el("label", { for: id }, label), select));
    return { get value() { return Number(select.value); }, fill };
  }

  function slider(parent, label, max, start, changed, say) {
    const id = "iumad-control-" + ++serial;
    const input = el("input", { id, type: "range", min: "0", max: String(max), step: "any", value: String(start) });
    if (max > 1 && Number.isInteger(max)) input.step = "1";
    const shown = el("output", { for: id });
    const tell = () => { shown.textContent = say(Number(input.value)); input.setAttribute("aria-valuetext", shown.textContent); };
    input.addEventListener("input", () => { tell(); changed(); });
    parent.append(el("span", { class: "control" }, el("label", { for: id }, label), input, shown));
    return {
      get value() { return Number(input.value); },
      limit(last) { input.max = String(last); if (Number(input.value) > last) input.value = String(last); },
      tell,
    };
  }

  function tick(parent, label, start, changed) {
    const id = "iumad-control-" + ++serial;
    const input = el("input", { id, type: "checkbox" });
    input.checked = start;
    input.addEventListener("change", changed);
    parent.append(el("span", { class: "control" }, input, el("label", { for: id }, label)));
    return { get value() { return input.checked; } };
  }

  function canvas(parent, caption) {
    const node = el("canvas", { width: SIZE, height: SIZE, role: "img", "aria-label": caption });
    parent.append(el("figure", {}, node, el("figcaption", {}, caption)));
    return node;
  }

  const pictures = new Map();
  function picture(address) {
    if (!pictures.has(address)) {
      const image = new Image();
      image.src = address;
      pictures.set(address, image.decode().then(() => image));
    }
    return pictures.get(address);
  }

  async function pixels(address, smooth) {
    const image = await picture(address);
    const hidden = el("canvas", { width: SIZE, height: SIZE });
    const pen = hidden.getContext("2d");
    pen.imageSmoothingEnabled = smooth;
    pen.drawImage(image, 0, 0, SIZE, SIZE);
    return pen.getImageData(0, 0, SIZE, SIZE).data;
  }

  // True where `inside` holds and a neighbour two pixels away does not: a line of two pixels.
  function onEdge(inside, i) {
    if (!inside(i)) return false;
    const x = i % SIZE, y = (i - x) / SIZE;
    return [[x - 2, y], [x + 2, y], [x, y - 2], [x, y + 2]].some(
      ([a, b]) => a >= 0 && b >= 0 && a < SIZE && b < SIZE && !inside(b * SIZE + a));
  }

  function paint(node, data, alt) {
    node.getContext("2d").putImageData(new ImageData(data, SIZE, SIZE), 0, 0);
    node.setAttribute("aria-label", alt);
  }

  function colours(hex) {
    return Array.from({ length: 256 }, (_, i) => [0, 2, 4].map((at) => parseInt(hex.substr(6 * i + at, 2), 16)));
  }

  function frame(parent, width, height, alt) {
    const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": alt });
    parent.replaceChildren(node);
    return node;
  }

  const percent = (value, digits = 1) => (100 * value).toFixed(digits) + " %";
  const say = (value) => (value === null ? "–" : String(Number(value.toPrecision(3))));

  function histogram(parent, good, defect, score) {
    const low = Math.min(...good, ...defect), high = Math.max(...good, ...defect), bins = 16;
    const place = (value) => (high > low ? (value - low) / (high - low) : 0.5);
    const count = (values) => {
      const found = new Array(bins).fill(0);
      for (const value of values) found[Math.min(bins - 1, Math.floor(place(value) * bins))] += 1;
      return found;
    };
    const [g, d] = [count(good), count(defect)];
    const top = Math.max(...g, ...d, 1), width = 280, height = 150, left = 10, base = 112, wide = (width - 2 * left) / bins;
    const below = good.filter((value) => value < score).length;
    const alt = `Histogram of image scores: ${good.length} good and ${defect.length} defective images; this one has ${say(score)}, more than ${below} of the good ones.`;
    const node = frame(parent, width, height, alt);
    for (let i = 0; i < bins; i++) {
      const x = left + i * wide;
      node.append(svg("rect", { x, y: base - 90 * g[i] / top, width: wide / 2 - 1, height: 90 * g[i] / top, fill: COLOURS[0] }));
      node.append(svg("rect", { x: x + wide / 2, y: base - 90 * d[i] / top, width: wide / 2 - 1, height: 90 * d[i] / top, fill: COLOURS[1] }));
    }
    const x = left + place(score) * (width - 2 * left);
    node.append(svg("line", { x1: left, x2: width - left, y1: base, y2: base, class: "axis" }));
    node.append(svg("path", { d: `M${x} 14V${base}M${x - 5} 8h10l-5 8z`, class: "mark" }));
    node.append(svg("text", { x: left, y: base + 14 }, say(low)), svg("text", { x: width - left, y: base + 14, "text-anchor": "end" }, say(high)));
    node.append(svg("text", { x: width / 2, y: base + 14, "text-anchor": "middle" }, "image score"));
    node.append(svg("rect", { x: left, y: base + 22, width: 10, height: 10, fill: COLOURS[0] }), svg("text", { x: left + 14, y: base + 31 }, "good"));
    node.append(svg("rect", { x: left + 60, y: base + 22, width: 10, height: 10, fill: COLOURS[1] }), svg("text", { x: left + 74, y: base + 31 }, "defective"));
  }

  function maps(root, data) {
    const controls = el("div", { class: "controls" }), shown = el("div", { class: "pictures" });
    const values = el("p", { class: "values", "aria-live": "polite" });
    root.append(controls, shown, values);
    const lut = colours(data.colours);
    const samples = () => data.categories[category.value].samples;
    const names = () => samples().map((one) => one.title);
    const runs = data.runs.map((one) => one.name), start = data.start;
    const category = choice(controls, "Category", data.categories.map((one) => one.name), () => { sample.fill(names()); draw(); }, start.category);
    const sample = choice(controls, "Sample", data.categories[start.category].samples.map((one) => one.title), () => draw(), start.sample);
    const run = choice(controls, "Method", runs, () => draw(), start.run);
    const second = choice(controls, "Beside it", ["nothing", ...runs], () => draw(), start.second);
    const threshold = slider(controls, "Threshold", 1, 0.6, () => draw(), (part) => percent(part, 0) + " of the range");
    const opacity = slider(controls, "Opacity of the map", 1, 0.6, () => draw(), (part) => percent(part, 0));
    const outline = tick(controls, "Outline the true defect", true, () => draw());
    const plain = canvas(shown, "Image"), depth = canvas(shown, "Depth");
    const views = [0, 1].map(() => {
      const chart = el("div", { class: "chart" });
      return { map: canvas(shown, "Anomaly map"), chart, figure: el("figure", {}, chart, el("figcaption", {})) };
    });
    shown.append(...views.map((view) => view.figure));  // the maps stand side by side, their scores below
    let turn = 0;

    async function draw() {
      const mine = ++turn, one = samples()[sample.value], chosen = [run.value, second.value - 1];
      const found = chosen.map((i) => (i < 0 ? null : data.runs[i].categories[category.value]));
      const [rgb, z, mask, ...maps] = await Promise.all([
        pixels(one.rgb, true), one.depth ? pixels(one.depth, true) : null, pixels(one.mask, false),
        ...found.map((of) => (of ? pixels(of.samples[sample.value].map, true) : null))]);
      if (mine !== turn) return;  // a newer change is on its way
      const isDefect = (i) => mask[4 * i] > 127, what = `${data.categories[category.value].name}, ${one.title}`;
      const outlined = (source) => {
        const copy = new Uint8ClampedArray(source);
        if (outline.value) for (let i = 0; i < SIZE * SIZE; i++) if (onEdge(isDefect, i)) copy.set(OUTLINE, 4 * i);
        return copy;
      };
      paint(plain, outlined(rgb), `Colour image of ${what}.`);
      depth.parentNode.hidden = !z;
      if (z) paint(depth, outlined(z), `Depth image of ${what}.`);
      const told = views.map((view, k) => {
        view.map.parentNode.hidden = view.figure.hidden = !found[k];
        return found[k] ? show(view, runs[chosen[k]], found[k], maps[k], rgb, isDefect, one, what) : "";
      });
      values.replaceChildren(...told.filter(Boolean).map((text) => el("span", {}, text)));
      root.dataset.ready = String(mine);
    }

    // One method's map over the grey image, its histogram, and what both say.
    function show(view, name, of, map, rgb, isDefect, one, what) {
      const level = 255 * threshold.value, isAbove = (i) => map[4 * i] >= level, score = of.samples[sample.value].score;
      const mixed = new Uint8ClampedArray(rgb.length);
      let above = 0, both = 0, either = 0;
      for (let i = 0; i < SIZE * SIZE; i++) {
        const grey = (rgb[4 * i] + rgb[4 * i + 1] + rgb[4 * i + 2]) / 3, heat = lut[map[4 * i]];
        const edge = onEdge(isAbove, i), truth = outline.value && onEdge(isDefect, i);
        for (let c = 0; c < 3; c++) {
          mixed[4 * i + c] = truth ? OUTLINE[c] : edge ? 255 : (1 - opacity.value) * grey + opacity.value * heat[c];
        }
        mixed[4 * i + 3] = 255;
        above += isAbove(i); both += isAbove(i) && isDefect(i); either += isAbove(i) || isDefect(i);
      }
      const share = percent(above / SIZE / SIZE), cut = of.low + threshold.value * (of.high - of.low);
      paint(view.map, mixed, `Anomaly map of ${name} for ${what}; ${share} of the pixels are above the threshold.`);
      view.map.parentNode.querySelector("figcaption").textContent = `Map of ${name}, colours from ${say(of.low)} to ${say(of.high)}`;
      view.figure.lastChild.textContent = `Scores of the category's test images by ${name}`;
      histogram(view.chart, of.good, of.defect, score);
      return `${name}: image score ${say(score)}. Threshold ${say(cut)}: ${share} of the pixels are above it (white line)` +
        (one.label ? `, overlap with the true defect (IoU) ${either ? (both / either).toFixed(2) : "-"}. ` : "; a good object, so nothing should be. ");
    }
    threshold.tell(); opacity.tell(); draw();
  }

  function curves(parent, lines, x, y, point, span) {
    // lines: [{name, values: [number or null]}]; span: values that the axis has to hold, so that two charts have one
    const width = 400, height = 280, left = 36, top = 30, base = 236;
    const right = 30 + 7 * Math.max(12, ...lines.map((line) => line.name.length)); // names stand at the lines' ends
    const all = span || lines.flatMap((line) => line.values).filter((value) => value !== null);
    if (!all.length) { parent.replaceChildren(el("p", {}, "No values.")); return; }
    const [least, most] = [Math.min(...all), Math.max(...all)];
    const rough = Math.max(most - least, 2) / 4, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((k) => k * power >= rough);
    const low = Math.floor(least / step) * step, high = Math.max(Math.ceil(most / step) * step, low + step);
    const px = (i) => left + (x.ticks.length > 1 ? i / (x.ticks.length - 1) : 0.5) * (width - left - right);
    const py = (value) => base - ((value - low) / (high - low)) * (base - top);
    const node = frame(parent, width, height, `${y} over ${x.label}: ` + lines.map((line) => `${line.name} ${line.values.map((v) => (v === null ? "–" : v.toFixed(1))).join(", ")}`).join("; "));
    for (let value = low; value < high + step / 2; value += step) {
      node.append(svg("line", { x1: left, x2: width - right, y1: py(value), y2: py(value), class: "grid" }));
      node.append(svg("text", { x: left - 5, y: py(value) + 4, "text-anchor": "end" }, String(Number(value.toFixed(4)))));
    }
    x.ticks.forEach((text, i) => node.append(svg("text", { x: px(i), y: base + 16, "text-anchor": "middle" }, text)));
    node.append(svg("text", { x: (left + width - right) / 2, y: base + 36, "text-anchor": "middle" }, x.label));
    node.append(svg("text", { x: 4, y: 10 }, y));
    if (x.now !== undefined) node.append(svg("line", { x1: px(x.now), x2: px(x.now), y1: top, y2: base, class: "now" }));
    const labels = [], places = [];
    lines.forEach((line, k) => {
      const colour = line.faint ? "#9a9a9a" : line.colour || COLOURS[k % COLOURS.length];
      const points = line.values.map((value, i) => (value === null ? null : [px(i), py(value)]));
      const path = points.map((at, i) => (at ? (i && points[i - 1] ? "L" : "M") + at.join(" ") : "")).join("");
      node.append(svg("path", { d: path, fill: "none", stroke: colour, "stroke-width": line.faint ? 1 : 2, "stroke-dasharray": DASHES[k % DASHES.length], opacity: line.faint ? 0.5 : 1 }));
      points.forEach((at, i) => {
        if (!at) return;
        const dot = svg("circle", { cx: at[0], cy: at[1], r: line.faint ? 2 : 4, fill: colour });
        const told = `${line.name}, ${x.label} ${x.ticks[i]}: ${line.values[i].toFixed(1)}`;
        dot.append(svg("title", {}, told));
        places.push({ at, told });
        dot.addEventListener("pointerenter", () => point(  // dots may cover each other: all of them speak
          places.filter((other) => Math.hypot(other.at[0] - at[0], other.at[1] - at[1]) < 6).map((other) => other.told).join("; ")));
        node.append(dot);
      });
      const last = points.filter(Boolean).pop();
      if (last) labels.push({ y: last[1], name: line.name, colour, dash: DASHES[k % DASHES.length] });
    });
    labels.sort((a, b) => a.y - b.y);
    labels.forEach((label, i) => { if (i) label.y = Math.max(label.y, labels[i - 1].y + 13); });
    const over = labels.length ? Math.max(0, labels[labels.length - 1].y - base) : 0;
    labels.forEach((label) => {
      const level = label.y - over;
      node.append(svg("line", { x1: width - right + 8, x2: width - right + 20, y1: level, y2: level, stroke: label.colour, "stroke-width": 3, "stroke-dasharray": label.dash }));
      node.append(svg("text", { x: width - right + 24, y: level + 4 }, label.name));
    });
  }

  function tabulate(parent, head, rows) {
    parent.replaceChildren(
      el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row[0]), ...row.slice(1).map((text) => el("td", {}, text))))));
  }

  function forgetting(root, data) {
    const controls = el("div", { class: "controls" }), shown = el("div", { class: "pictures" });
    const values = el("p", { class: "values", "aria-live": "polite" }), table = el("table");
    root.append(controls, shown, values, el("details", {}, el("summary", {}, "The same as a table"), table));
    const of = () => data.groups[group.value], methods = () => of().methods.map((one) => one.name);
    const metric = choice(controls, "Metric", data.metrics.map((one) => one.label), () => draw());
    const group = choice(controls, "Setting, modality", data.groups.map((one) => one.name), () => { pair.forEach((each, k) => each.fill(methods(), of().start[k])); one.fill(["all", ...of().categories], 0); draw(); });
    const pair = ["Method", "Beside it"].map((label, k) => choice(controls, label, methods(), () => draw(), of().start[k]));
    const one = choice(controls, "Category", ["all", ...of().categories], () => draw());
    const charts = pair.map(() => {
      const chart = el("div", { class: "chart" }), caption = el("figcaption", {});
      shown.append(el("figure", { class: "wide" }, chart, caption));
      return { chart, caption };
    });

    function draw() {
      const key = data.metrics[metric.value].key, found = pair.map((each) => of().methods[each.value]), ticks = of().learnt.map(String);
      const lines = found.map((method) => of().categories.map((name, i) => ({ name, values: method.values[key][i], faint: one.value > 0 && one.value !== i + 1 })));
      const all = lines.flat().flatMap((line) => line.values).filter((value) => value !== null);
      charts.forEach(({ chart, caption }, k) => {
        curves(chart, lines[k], { label: "categories learnt", ticks }, data.metrics[metric.value].label, (told) => { values.textContent = told; }, all);
        caption.textContent = found[k].name;
      });
      values.replaceChildren(...found.map((method) => {
        const fm = method.forgetting[key], learnt = method.new[key];
        return el("span", {}, `${method.name}, ${of().name}: ` + (fm === null ? "one step, so nothing can be forgotten." :
          `forgot ${(Math.round(10 * fm) / 10 + 0).toFixed(1)} points by the last step (falling lines); new categories reached ${learnt.toFixed(1)} % when they were learnt (where lines begin).`));
      }));
      tabulate(table, ["category", ...ticks], lines[0].map((line) => [line.name, ...line.values.map((v) => (v === null ? "–" : v.toFixed(1)))]));
      root.dataset.ready = [metric.value, group.value, ...pair.map((each) => each.value), one.value].join("-");
    }
    draw();
  }

  function perturbation(root, data) {
    const controls = el("div", { class: "controls" }), shown = el("div", { class: "pictures" });
    const values = el("p", { class: "values", "aria-live": "polite" });
    root.append(controls, shown, values);
    const kind = choice(controls, "Perturbation", data.kinds.map((one) => one.name), () => { strength.limit(last()); strength.tell(); draw(); });
    const last = () => data.kinds[kind.value].strengths.length - 1;
    const sample = choice(controls, "Sample", data.kinds[0].samples.map((one) => one.title), () => draw());
    const metric = choice(controls, "Metric", data.metrics.map((one) => one.label), () => draw());
    const strength = slider(controls, "Strength", data.kinds[0].strengths.length - 1, 0, () => draw(), (i) => String(data.kinds[kind.value].strengths[i]));
    const image = canvas(shown, "Image"), depth = canvas(shown, "Depth"), chart = el("div", { class: "chart" });
    shown.append(el("figure", { class: "wide" }, chart, el("figcaption", {}, "Test images perturbed, models trained on clean ones")));
    let turn = 0;

    async function draw() {
      const mine = ++turn, of = data.kinds[kind.value], one = of.samples[sample.value], at = strength.value;
      const key = data.metrics[metric.value].key;
      const [rgb, z] = await Promise.all([pixels(one.rgb[at], true), one.depth ? pixels(one.depth[at], true) : null]);
      if (mine !== turn) return;
      const what = `${one.title}, ${of.name} ${of.strengths[at]}`;
      paint(image, new Uint8ClampedArray(rgb), `Colour image of ${what}.`);
      depth.parentNode.hidden = !z;
      if (z) paint(depth, new Uint8ClampedArray(z), `Depth image of ${what}.`);
      const lines = of.runs.map((run) => ({ name: run.name, colour: run.colour, values: run.values[key] }));
      curves(chart, lines, { label: "strength", ticks: of.strengths.map(String), now: at }, data.metrics[metric.value].label, (told) => { values.textContent = told; });
      values.textContent = `${of.name} ${of.strengths[at]}: ` + lines.map((line) => `${line.name} ${line.values[at] === null ? "–" : line.values[at].toFixed(1)}`).join(", ") + ` (${data.metrics[metric.value].label}).`;
      root.dataset.ready = String(mine);
    }
    strength.tell(); draw();
  }

  function samples(root, data) {
    const controls = el("div", { class: "controls" }), shown = el("div", { class: "pictures" });
    const values = el("p", { class: "values", "aria-live": "polite" });
    root.append(controls, shown, values);
    const names = () => data.categories[category.value].samples.map((one) => one.title);
    const category = choice(controls, "Category", data.categories.map((one) => one.name), () => { defect.fill(names()); draw(); });
    const defect = choice(controls, "Defect", data.categories[0].samples.map((one) => one.title), () => draw(), 1);
    const outline = tick(controls, "Outline the defect", true, () => draw());
    const image = canvas(shown, "Image"), depth = canvas(shown, "Depth"), truth = canvas(shown, "Mask");
    let turn = 0;

    async function draw() {
      const mine = ++turn, one = data.categories[category.value].samples[defect.value];
      const [rgb, z, mask] = await Promise.all([pixels(one.rgb, true), one.depth ? pixels(one.depth, true) : null, pixels(one.mask, false)]);
      if (mine !== turn) return;
      const inside = (i) => mask[4 * i] > 127, what = `${data.categories[category.value].name}, ${one.title}`;
      const outlined = (source) => {
        const copy = new Uint8ClampedArray(source);
        if (outline.value) for (let i = 0; i < SIZE * SIZE; i++) if (onEdge(inside, i)) copy.set(OUTLINE, 4 * i);
        return copy;
      };
      paint(image, outlined(rgb), `Colour image of ${what}.`);
      depth.parentNode.hidden = !z;
      if (z) paint(depth, outlined(z), `Depth image of ${what}.`);
      paint(truth, new Uint8ClampedArray(mask), `Mask of ${what}, white where the defect is.`);
      values.textContent = `${what}: ${one.note}`;
      root.dataset.ready = String(mine);
    }
    draw();
  }

  // The threshold above which `allowed` of the good images lie (fewer where scores are equal); kinds[0] are the good ones.
  function cutAt(kinds, allowed) {
    const good = [...kinds[0].scores].sort((a, b) => b - a);
    return good[Math.min(allowed, good.length - 1)];
  }

  function strips(parent, kinds, cut, title) {
    const width = 400, left = 104, right = 44, row = 22, top = 10, base = top + row * kinds.length;
    const all = kinds.flatMap((kind) => kind.scores), low = Math.min(...all), high = Math.max(...all);
    const px = (value) => left + (high > low ? (value - low) / (high - low) : 0.5) * (width - left - right);
    const above = kinds.map((kind) => kind.scores.filter((value) => value > cut).length);
    const node = frame(parent, width, base + 34, `Image scores by ${title}; above the threshold: ` + kinds.map((kind, k) => `${above[k]} of ${kind.scores.length} ${kind.name}`).join(", ") + ".");
    kinds.forEach((kind, k) => {
      const y = top + row * (k + 0.5);
      node.append(svg("line", { x1: left, x2: width - right, y1: y, y2: y, class: "grid" }));
      node.append(svg("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, kind.name));
      node.append(svg("text", { x: width - right + 8, y: y + 4 }, `${above[k]}/${kind.scores.length}`));
      for (const value of kind.scores) {
        node.append(svg("line", { x1: px(value), x2: px(value), y1: y - 7, y2: y + 7, stroke: COLOURS[k ? 1 : 0], "stroke-width": 1.6, opacity: value > cut ? 0.9 : 0.35 }));
      }
    });
    node.append(svg("line", { x1: px(cut), x2: px(cut), y1: 2, y2: base, class: "now" }));
    node.append(svg("line", { x1: left, x2: width - right, y1: base, y2: base, class: "axis" }));
    node.append(svg("text", { x: left, y: base + 14 }, say(low)), svg("text", { x: width - right, y: base + 14, "text-anchor": "end" }, say(high)));
    node.append(svg("text", { x: (left + width - right) / 2, y: base + 28, "text-anchor": "middle" }, "image score"));
  }

  function scores(root, data) {
    const controls = el("div", { class: "controls" }), shown = el("div", { class: "pictures" });
    const values = el("p", { class: "values", "aria-live": "polite" }), table = el("table");
    root.append(controls, shown, values, el("details", {}, el("summary", {}, "The same as a table"), table));
    const of = () => data.groups[group.value], names = () => of().methods.map((one) => one.name);
    const kindsOf = (method) => method.categories[category.value].kinds, goods = () => kindsOf(of().methods[0])[0].scores.length;
    const changed = () => { allowed.limit(Math.max(0, goods() - 1)); allowed.tell(); draw(); };
    const group = choice(controls, "Data", data.groups.map((one) => one.name), () => { category.fill(of().methods[0].categories.map((one) => one.name), 0); pair.forEach((each, k) => each.fill(names(), of().start[k])); changed(); });
    const category = choice(controls, "Category", of().methods[0].categories.map((one) => one.name), changed);
    const pair = ["Method", "Beside it"].map((label, k) => choice(controls, label, names(), () => draw(), of().start[k]));
    const allowed = slider(controls, "False alarms allowed", Math.max(2, goods() - 1), 1, () => draw(), (many) => `${many} of ${goods()} good images`);
    const charts = pair.map(() => {
      const chart = el("div", { class: "chart" }), caption = el("figcaption", {});
      shown.append(el("figure", { class: "wide" }, chart, caption));
      return { chart, caption };
    });

    function draw() {
      const found = pair.map((each) => of().methods[each.value]), cuts = found.map((method) => cutAt(kindsOf(method), allowed.value));
      const counted = found.map((method, k) => kindsOf(method).map((kind) => kind.scores.filter((value) => value > cuts[k]).length));
      charts.forEach(({ chart, caption }, k) => {
        strips(chart, kindsOf(found[k]), cuts[k], found[k].name);
        caption.textContent = found[k].name;
      });
      values.replaceChildren(...found.map((method, k) => {
        const defects = kindsOf(method).slice(1).map((kind) => kind.scores.length).reduce((a, b) => a + b, 0);
        const hits = counted[k].slice(1).reduce((a, b) => a + b, 0);
        return el("span", {}, `${method.name}: threshold ${say(cuts[k])}; ${counted[k][0]} false alarms, ${defects - hits} of ${defects} defective images missed.`);
      }));
      tabulate(table, ["kind", "images", ...found.map((method) => `above, ${method.name}`)], kindsOf(found[0]).map((kind, i) => [kind.name, String(kind.scores.length), ...counted.map((each) => String(each[i]))]));
      root.dataset.ready = [group.value, category.value, ...pair.map((each) => each.value), allowed.value].join("-");
    }
    allowed.tell(); draw();
  }

  return { maps, forgetting, perturbation, samples, scores };
})();
