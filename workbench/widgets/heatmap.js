// Where a model looked for a token. Draws `shown` over `pictures`; sends {do: "look", token, method, relative}.

function render({ model, el }) {
  const root = rootOf(el, "wb-heatmap"), tokens = model.get("tokens");
  const method = make("select", { "aria-label": "method" }, ...model.get("methods").map((name) => make("option", {}, name)));
  const relative = make("input", { type: "checkbox", checked: true }), told = make("span", { className: "wb-soft", role: "status" });
  const strength = make("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0.75, "aria-label": "strength" });
  let current = model.get("shown").token;
  const ask = (token) => {
    current = token;
    model.send({ do: "look", token, method: method.value, relative: relative.checked });
  };
  const words = tokens.map((text, number) => button(text.replace(/\n/g, "↵") || "·", () => ask(number), { className: "wb-word" }));
  const strip = make("div", { className: "wb-words", role: "group", "aria-label": "tokens of the answer" }, ...words);
  const layers = model.get("pictures").map((picture) => {
    const heat = make("img", { className: "wb-heat", alt: "" });
    return [make("div", { className: "wb-layers" }, make("img", { src: picture, alt: "what the model sees" }), heat), heat];
  });
  root.append(
    make("b", {}, model.get("question")), strip, make("div", { className: "wb-seen" }, ...layers.map(([box]) => box)),
    make("div", { className: "wb-heat-foot" }, method, make("label", {}, relative, " relative to a neutral question"),
      make("label", {}, make("small", {}, "strength "), strength), told),
    problemLine(model),
  );
  const again = () => ask(current);
  method.addEventListener("change", again);
  relative.addEventListener("change", again);
  strength.addEventListener("input", () => root.style.setProperty("--wb-strength", strength.value));
  strip.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = words[words.indexOf(event.target) + step];
    if (next) next.focus(), next.click();
  });

  function show() {
    const shown = model.get("shown");
    words.forEach((word, number) => word.setAttribute("aria-pressed", String(number === shown.token)));
    layers.forEach(([, heat], number) => (heat.src = shown.overlays[number]));
    relative.disabled = method.value === "occlusion";
    told.textContent = model.get("busy") ? "looking ..." : `strongest patch: ${(100 * shown.peak).toFixed(0)} % of the whole map`;
    root.classList.toggle("wb-looking", model.get("busy"));
  }
  return follow(model, { shown: show, busy: show });
}

export default { render };
