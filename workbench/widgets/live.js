// A training run as it goes on. Draws what the traits `state`, `curves`, `answers` and `problem` say, and sends what a
// button asks for: {do: "stop" | "pause" | "resume" | "save"}. Texts are set as text, never as HTML.

const WIDTH = 360, HEIGHT = 150, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 20;
const COLORS = ["--wb-one", "--wb-two", "--wb-three", "--wb-four"];
const SVG = "http://www.w3.org/2000/svg";
const WORDS = { stop: "stopping …", pause: "pausing …", save: "saving …" };

function draw(tag, props) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(props)) made.setAttribute(key, value);
  return made;
}

function short(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 0.001) return value.toExponential(0);
  if (size >= 10000) return `${Math.round(value / 1000)}k`;
  return String(Number(value.toPrecision(3)));
}

function clock(seconds) {
  const whole = Math.round(seconds), pad = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
}

// The range of the vertical axis: from 0, except for a loss that is far from it; one outlier does not flatten the rest.
function range(lines) {
  const values = lines.flatMap(([, points]) => points.map((point) => point[1])).sort((a, b) => a - b);
  let low = values[0], high = values[values.length - 1];
  const usual = values[Math.floor(values.length * 0.98)];
  if (values.length > 20 && high > 3 * usual && usual > 0) high = 1.2 * usual;
  if (low > 0 && low < 0.6 * high) low = 0;
  if (low === high) [low, high] = [Math.min(0, low), high || 1];
  return [low, high];
}

function chart(title, byName, steps) {
  const lines = Object.entries(byName).filter(([, points]) => points.length);
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  const last = Math.max(...lines.map(([, points]) => points[points.length - 1][0]));
  const right = steps && last > steps / 4 ? steps : last, [low, high] = range(lines);
  const across = (x) => LEFT + ((WIDTH - LEFT - RIGHT) * x) / (right || 1);
  const down = (y) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (Math.min(y, high) - low) / (high - low));
  for (const share of [0, 0.5, 1]) {
    const value = low + (high - low) * share, y = down(value);
    svg.append(draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, class: "wb-grid" }));
    const text = draw("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" });
    text.textContent = short(value);
    svg.append(text);
  }
  for (const [x, anchor] of [[0, "start"], [right, "end"]]) {
    const text = draw("text", { x: across(x), y: HEIGHT - 5, "text-anchor": anchor });
    text.textContent = short(x);
    svg.append(text);
  }
  lines.forEach(([, points], number) => {
    const color = `var(${COLORS[number % COLORS.length]})`;
    const path = points.map(([x, y]) => `${across(x).toFixed(1)},${down(y).toFixed(1)}`).join(" ");
    svg.append(draw("polyline", { points: path, fill: "none", stroke: color, "stroke-width": number ? 2 : 1.5 }));
    if (points.length < 12) {
      for (const [x, y] of points) svg.append(draw("circle", { cx: across(x), cy: down(y), r: 2.5, fill: color }));
    }
  });
  const cursor = draw("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "wb-cursor", visibility: "hidden" });
  svg.append(cursor);
  const values = make("span", { className: "wb-values" });
  const tell = (at) => {
    const told = lines.map(([name, points], number) => {
      const point = at === null ? points[points.length - 1]
        : points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
      const item = make("span", {}, make("i"), `${lines.length > 1 ? `${name} ` : ""}${short(point[1])}`);
      item.firstChild.style.background = `var(${COLORS[number % COLORS.length]})`;
      return item;
    });
    if (at !== null) told.unshift(make("span", {}, `step ${Math.round(at)}`));
    values.replaceChildren(...told);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) * WIDTH) / box.width;
    const at = Math.max(0, Math.min(last, ((x - LEFT) * right) / (WIDTH - LEFT - RIGHT)));
    cursor.setAttribute("x1", across(at));
    cursor.setAttribute("x2", across(at));
    cursor.setAttribute("visibility", "visible");
    tell(at);
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    tell(null);
  });
  tell(null);
  return make("figure", { "data-curve": title }, make("figcaption", {}, make("b", {}, title), values), svg);
}

function card(asked, place) {
  const said = asked.answers[place] ?? "";
  const picture = asked.picture ? make("img", { src: asked.picture, alt: "" }) : null;
  const right = said.trim() === (asked.reference ?? "").trim();
  const answer = make("p", { className: `wb-answer${right ? " wb-right" : ""}` }, said || "(nothing)");
  const words = make(
    "div", {}, make("p", { className: "wb-question" }, asked.question), answer,
    make("p", { className: "wb-soft" }, `expected: ${asked.reference ?? ""}`),
  );
  return make("article", { className: "wb-card" }, picture, words);
}

function render({ model, el }) {
  const root = make("div", { className: "wb wb-live" });
  const head = make("div", { className: "wb-head" }), figures = make("div", { className: "wb-figures" });
  const bar = make("div", { className: "wb-bar", role: "progressbar" }, make("div"));
  const trouble = make("pre", { className: "wb-trouble" }), curves = make("div", { className: "wb-curves" });
  const problem = make("p", { className: "wb-problem", role: "alert" });
  const answers = make("section", { className: "wb-answers" });
  const name = make("b"), pill = make("span", { className: "wb-pill" }), told = make("span", { className: "wb-soft" });
  const buttons = {
    pause: make("button", { type: "button" }), save: make("button", { type: "button" }, "Save now"),
    stop: make("button", { type: "button" }, "Stop"),
  };
  for (const [action, button] of Object.entries(buttons)) {
    button.addEventListener("click", () => {
      button.disabled = true;
      model.send({ do: button.dataset.do ?? action });
    });
  }
  head.append(name, pill, told, make("span", { className: "wb-buttons" }, ...Object.values(buttons)));
  root.append(head, bar, problem, trouble, figures, curves, answers);
  el.append(root);

  function showState() {
    const state = model.get("state"), busy = ["starting", "running", "paused"].includes(state.status);
    name.textContent = state.name;
    pill.textContent = WORDS[state.status === "paused" && state.asked === "pause" ? "" : state.asked] ?? state.status;
    pill.dataset.status = state.status;
    const of = state.steps ? ` of ${state.steps}` : "", left = state.left === null ? "" : `, ${clock(state.left)} left`;
    told.textContent = state.step || state.steps ? `step ${state.step}${of}${left}` : "";
    bar.firstChild.style.width = state.steps ? `${(100 * state.step) / state.steps}%` : "0";
    const goes = state.status === "paused" || !busy;
    buttons.pause.textContent = goes ? "Go on" : "Pause";
    buttons.pause.dataset.do = goes ? "resume" : "pause";
    buttons.pause.disabled = state.status === "finished" || state.status === "starting" || state.asked === "stop";
    buttons.save.disabled = state.status !== "running" || Boolean(state.asked);
    buttons.stop.disabled = !busy || state.asked === "stop";
    trouble.textContent = state.trouble ?? "";
    trouble.hidden = !state.trouble;
    figures.replaceChildren(...state.figures.map((figure) =>
      make("div", {}, make("small", {}, figure.name), make("b", {}, figure.value), make("small", {}, figure.note))));
  }

  function showCurves() {
    const shown = Object.entries(model.get("curves"));
    curves.replaceChildren(...shown.map(([title, lines]) => chart(title, lines, model.get("state").steps)));
  }

  let chosen = null; // the place of the step whose answers are shown; null: always the last one
  function showAnswers() {
    const { steps = [], cards = [] } = model.get("answers");
    answers.hidden = !cards.length;
    if (!cards.length) return;
    const last = steps.length - 1, place = chosen === null ? last : Math.min(chosen, last);
    const label = make("span", {}, `after step ${steps[place]}`);
    const list = make("div", { className: "wb-cards" }, ...cards.map((asked) => card(asked, place)));
    const slider = make("input", { type: "range", min: 0, max: last, step: 1, "aria-label": "answers after step" });
    slider.value = place;
    slider.hidden = last < 1;
    slider.addEventListener("input", () => {
      const now = Number(slider.value);
      chosen = now === last ? null : now;
      label.textContent = `after step ${steps[now]}`;
      list.replaceChildren(...cards.map((asked) => card(asked, now)));
    });
    answers.replaceChildren(make("h4", {}, "Held-out questions ", label, slider), list);
  }

  function showProblem() {
    problem.textContent = model.get("problem");
    problem.hidden = !model.get("problem");
    if (model.get("problem")) showState(); // the button that was pressed can be pressed again
  }

  return follow(model, { state: showState, curves: showCurves, answers: showAnswers, problem: showProblem });
}

export default { render };
