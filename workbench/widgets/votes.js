// Answers of several models side by side. Draws the trait `rows`; sends {do: "vote", number, name}.

const EQUAL = "equal";

function answerBox(answer, failure) {
  if (failure) return make("p", { className: "wb-problem" }, failure);
  if (!answer) return make("p", { className: "wb-soft" }, "…");
  const pieces = answer.map(([text, differs]) => (differs ? make("mark", {}, text) : text));
  return make("p", { className: "wb-answer-text" }, ...(pieces.length ? pieces : ["(nothing)"]));
}

function render({ model, el }) {
  const root = rootOf(el, "wb-votes"), names = model.get("names"), blind = model.get("blind");
  const head = make("p", { className: "wb-tally", role: "status" }), list = make("div");
  root.append(head, problemLine(model), list);

  function box(row, number) {
    const vote = (name) => model.send({ do: "vote", number, name });
    const known = !blind || row.vote, ready = row.answers.every((one, side) => one || row.failures[side]);
    const can = (name) => ready && (name === EQUAL ? row.answers.filter(Boolean).length > 1 : Boolean(row.answers[names.indexOf(name)]));
    const columns = names.map((name, side) => {
      const shown = known ? name : `answer ${side + 1}`, failure = row.failures[side], chosen = row.vote === name && !failure;
      return make("div", { className: `wb-column${failure ? " wb-failed" : chosen ? " wb-chosen" : ""}` },
        make("small", {}, shown), answerBox(row.answers[side], failure),
        failure ? null : button(chosen ? "✓ best" : "best", () => vote(name), { "aria-pressed": String(chosen), "aria-label": `best: ${shown}`, disabled: !can(name) }));
    });
    const earlier = row.earlier.map((one) => make("p", {}, make("small", {}, make("b", {}, one.role), ` ${one.text}`)));
    const even = row.vote === EQUAL;
    const asked = make("div", { className: "wb-question-row" }, make("b", {}, row.question),
      row.reference ? make("small", {}, `expected: ${row.reference}`) : null,
      button(even ? "✓ equal" : "equal", () => vote(EQUAL), { "aria-pressed": String(even), disabled: !can(EQUAL) }));
    const made = make("article", { className: "wb-compared", tabIndex: 0, "aria-label": row.question },
      row.picture ? make("img", { src: row.picture, alt: "" }) : null, make("div", {}, earlier.length ? make("div", { className: "wb-earlier" }, ...earlier) : null, asked, make("div", { className: "wb-columns" }, ...columns)));
    made.addEventListener("keydown", (event) => {
      const name = event.key === "0" ? EQUAL : names[Number(event.key) - 1];
      if (name && can(name)) vote(name);
      const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      if (step) event.preventDefault(), made[step]?.focus();
    });
    return made;
  }

  let drawn = [];
  function showRows() {
    const rows = model.get("rows"), text = (row) => JSON.stringify([row.answers, row.failures, row.vote]);
    const focused = [...list.children].indexOf(root.getRootNode().activeElement?.closest?.(".wb-compared"));
    rows.forEach((row, number) => {
      if (drawn[number] === text(row)) return;
      const made = box(row, number);
      if (list.children[number]) list.children[number].replaceWith(made);
      else list.append(made);
      if (number === focused) made.focus();
    });
    drawn = rows.map(text);
    const cast = rows.map((row) => row.vote).filter(Boolean), counts = [...names, EQUAL].map((name) => `${name} ${cast.filter((one) => one === name).length}`);
    head.replaceChildren(make("b", {}, `${rows.length} questions`), make("span", { className: "wb-soft" },
      blind && cast.length < rows.length ? `${cast.length} votes; names are shown after a vote` : `votes: ${counts.join(", ")}`,
      ". Keys on a question: 1, 2 … best, 0 equal, ↑ ↓."));
  }
  return follow(model, { rows: showRows });
}

export default { render };
