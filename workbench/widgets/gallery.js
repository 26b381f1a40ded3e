// A wall of conversations. Search and filters work on the trait `items` here; pictures are asked for a page at a time:
// {do: "pictures", numbers} is answered by {pictures: {number: data URI or null}}.

const PAGE = 24;
const SORTS = { "as they come": null, "lowest score": (a, b) => a.score - b.score, "highest score": (a, b) => b.score - a.score };

function wordsOf(item) {
  return `${item.id} ${item.task} ${item.tags.join(" ")} ${item.turns.map((turn) => turn[1]).join(" ")}`.toLowerCase();
}

function pick(name, values, changed) {
  const made = make("select", { "aria-label": name }, make("option", { value: "" }, `every ${name}`));
  for (const [value, count] of values) made.append(make("option", { value }, `${value} (${count})`));
  made.addEventListener("change", changed);
  made.hidden = values.length < 2;
  return made;
}

function counted(values) {
  const counts = new Map();
  for (const value of values) if (value) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]);
}

function turnLine([role, text]) {
  const label = role === "expected" ? "expected: " : "";
  return make("p", { className: `wb-turn wb-turn-${role}` }, label, text);
}

function render({ model, el }) {
  const root = rootOf(el, "wb-gallery"), items = model.get("items"), words = items.map(wordsOf), known = new Map();
  let shown = [], at = 0, open = null, wait = 0;
  const again = () => { at = 0; choose(); };
  const search = make("input", { type: "search", placeholder: "search", "aria-label": "search" });
  search.addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(again, 120); });
  const task = pick("task", counted(items.map((item) => item.task)), again);
  const split = pick("split", counted(items.map((item) => item.split)), again);
  const tag = pick("tag", counted(items.flatMap((item) => item.tags)), again);
  const sort = make("select", { "aria-label": "order" }, ...Object.keys(SORTS).map((name) => make("option", {}, name)));
  sort.addEventListener("change", again);
  sort.hidden = !items.some((item) => item.score !== null && item.score !== undefined);
  const count = make("span", { className: "wb-soft", role: "status" });
  const back = button("‹", () => turn(-PAGE), { "aria-label": "page before" });
  const next = button("›", () => turn(PAGE), { "aria-label": "next page" });
  const wall = make("div", { className: "wb-wall", role: "list" }), detail = make("section", { className: "wb-detail", hidden: true });
  root.append(
    make("div", { className: "wb-gallery-head" }, make("b", {}, model.get("title")), search, task, split, tag, sort,
      make("span", { className: "wb-right-side" }, count, back, next)),
    problemLine(model), detail, wall,
  );

  function picture(number) {
    const made = make("div", { className: "wb-thumb" });
    made.dataset.number = number;
    fill(made, known.get(number));
    return made;
  }

  function fill(thumb, uri) {
    if (uri) thumb.replaceChildren(make("img", { src: uri, alt: "" }));
    else if (uri === null) thumb.textContent = "no picture";
  }

  function tile(number) {
    const item = items[number], [first, second] = item.turns.filter((turn) => turn[0] !== "system");
    const made = make("button", { type: "button", className: "wb-tile", role: "listitem" }, picture(number),
      make("b", {}, first?.[1] ?? ""), make("span", {}, second?.[1] ?? ""),
      make("small", {}, [item.task, ...item.tags].filter(Boolean).join(" · ")));
    made.addEventListener("click", () => tell(number));
    return made;
  }

  function choose() {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = items.map((item, number) => number).filter((number) => {
      const item = items[number];
      return (!task.value || item.task === task.value) && (!split.value || item.split === split.value)
        && (!tag.value || item.tags.includes(tag.value)) && wanted.every((word) => words[number].includes(word));
    });
    const order = SORTS[sort.value];
    if (order) shown.sort((a, b) => order(items[a], items[b]));
    draw();
  }

  function turn(by) {
    at = Math.max(0, Math.min(at + by, Math.floor((shown.length - 1) / PAGE) * PAGE));
    draw();
  }

  function draw() {
    const here = shown.slice(at, at + PAGE);
    wall.replaceChildren(...here.map(tile));
    count.textContent = shown.length ? `${at + 1}–${at + here.length} of ${shown.length}` : "nothing found";
    back.disabled = at === 0;
    next.disabled = at + PAGE >= shown.length;
    const asked = here.filter((number) => !known.has(number));
    if (asked.length) model.send({ do: "pictures", numbers: asked });
  }

  function tell(number) {
    open = number;
    const item = items[number], app = make("span", { className: "wb-app" });
    const away = button("Close", () => { detail.hidden = true; open = null; });
    const show = button("Open in FiftyOne", () => model.send({ do: "open", number }));
    const how = make("small", {}, "of a dataset (gallery(dataset)) the picture can be opened in FiftyOne");
    detail.replaceChildren(picture(number), make("div", {}, ...item.turns.map(turnLine)),
      make("div", { className: "wb-tools-row" }, make("small", {}, item.id), model.get("opens") ? show : how, app, away));
    detail.hidden = false;
    detail.scrollIntoView({ block: "nearest" });
    away.focus();
  }

  wall.addEventListener("keydown", (event) => {
    const tiles = [...wall.children], now = tiles.indexOf(root.getRootNode().activeElement);
    const across = tiles.filter((one) => one.offsetTop === tiles[0].offsetTop).length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
    if (now < 0 || !step) return;
    event.preventDefault();
    tiles[now + step]?.focus();
  });
  root.addEventListener("keydown", (event) => {
    if (event.key === "PageDown" || event.key === "PageUp") event.preventDefault(), turn(event.key === "PageDown" ? PAGE : -PAGE);
    if (event.key === "Escape" && open !== null) detail.hidden = true, wall.children[shown.slice(at).indexOf(open)]?.focus();
  });

  const hear = (message) => {
    for (const [number, uri] of Object.entries(message.pictures ?? {})) {
      known.set(Number(number), uri);
      root.querySelectorAll(`.wb-thumb[data-number="${number}"]`).forEach((thumb) => fill(thumb, uri));
    }
  };
  const showApp = () => {
    const told = model.get("app"), place = detail.querySelector(".wb-app");
    if (place) place.replaceChildren(told.startsWith("http") ? make("a", { href: told, target: "_blank", rel: "noopener" }, told) : told);
  };
  model.on("msg:custom", hear);
  choose();
  const off = follow(model, { app: showApp });
  return () => {
    model.off("msg:custom", hear);
    off();
  };
}

export default { render };
