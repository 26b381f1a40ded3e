// The token strip. Draws the traits `tokens` and `about`; asks Python for nothing.

const HELP = "Point at a token, or walk with ← → Home End.";

function shownText(text) {
  return text.replace(/\n/g, "↵\n").replace(/\t/g, "⇥\t");
}

function percent(value) {
  return value >= 0.0995 ? `${(100 * value).toFixed(0)} %` : `${(100 * value).toPrecision(2)} %`;
}

// What is told about a token, as [name, value].
function facts(token) {
  const told = [["position", token.count > 1 ? `${token.place}–${token.place + token.count - 1}` : token.place]];
  if (token.id < 0) {
    told.push(["image", token.text], ["tokens", token.count ?? "as many as the model takes"], ["label", "not trained"]);
    return told;
  }
  told.push(["id", token.id], ["text", JSON.stringify(token.text)]);
  told.push(["label", token.trained ? token.id : "not trained (-100)"]);
  if (token.loss !== undefined) {
    told.push(["loss", token.loss.toFixed(3)], ["probability", percent(token.probability)]);
    told.push(["likeliest", `${JSON.stringify(token.expected)} ${percent(token.chance)}`]);
  }
  return told;
}

function chip(token, number) {
  const made = make("span", { className: "wb-token", tabIndex: number ? -1 : 0 });
  made.dataset.number = number;
  if (token.id < 0) {
    made.classList.add("wb-image");
    if (token.image) made.append(make("img", { src: token.image, alt: "" }));
    made.append(`image${token.count ? `: ${token.count} tokens` : ""}`);
  } else {
    made.textContent = shownText(token.text) || "·";
  }
  made.classList.toggle("wb-trained", token.trained);
  made.setAttribute("aria-label", facts(token).map(([name, value]) => `${name} ${value}`).join(", "));
  return made;
}

function render({ model, el }) {
  const root = rootOf(el, "wb-tokens");
  const head = make("div", { className: "wb-tokens-head" });
  const strip = make("div", { className: "wb-strip", role: "group", "aria-label": "tokens" });
  const told = make("div", { className: "wb-facts", role: "status" });
  const choice = button("Colour by loss", () => {
    choice.setAttribute("aria-pressed", String(strip.classList.toggle("wb-by-loss")));
  }, { "aria-pressed": "false" });
  root.append(head, strip, told);
  let current = 0;

  function tell(number) {
    const token = model.get("tokens")[number];
    if (!token) return told.replaceChildren(make("span", { className: "wb-soft" }, HELP));
    const items = facts(token).map(([name, value]) => make("span", {}, make("small", {}, `${name} `), make("b", {}, String(value))));
    told.replaceChildren(...items);
  }

  function walk(to) {
    const chips = strip.children;
    const next = Math.max(0, Math.min(chips.length - 1, to));
    if (!chips[next]) return;
    if (chips[current]) chips[current].tabIndex = -1;
    current = next;
    chips[next].tabIndex = 0;
    chips[next].focus();
  }

  strip.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: strip.children.length - 1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    walk(steps[event.key]);
  });
  const number = (event) => event.target.closest?.(".wb-token")?.dataset.number;
  strip.addEventListener("pointerover", (event) => number(event) !== undefined && tell(Number(number(event))));
  strip.addEventListener("focusin", (event) => {
    if (number(event) === undefined) return;
    current = Number(number(event));
    tell(current);
  });
  strip.addEventListener("pointerleave", () => tell(strip.contains(document.activeElement) ? current : -1));

  function showTokens() {
    const tokens = model.get("tokens");
    strip.replaceChildren(...tokens.map(chip));
    tokens.forEach((token, place) => {
      if (token.loss === undefined) return;
      strip.children[place].dataset.loss = token.loss;
      strip.children[place].style.setProperty("--wb-loss", Math.min(1, token.loss / 4).toFixed(3));
    });
    choice.hidden = !tokens.some((token) => token.loss !== undefined);
    current = 0;
    tell(-1);
  }

  function showAbout() {
    const about = model.get("about");
    const loss = about.loss === null ? "" : `, mean loss ${about.loss.toFixed(3)}`;
    head.replaceChildren(
      make("b", {}, about.title),
      make("span", { className: "wb-soft" }, `template ${about.template}: ${about.count} tokens, ${about.trained} trained${loss}`),
      choice,
    );
  }

  return follow(model, { tokens: showTokens, about: showAbout });
}

export default { render };
