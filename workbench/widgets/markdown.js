// What models write, as elements: headings, lists, quotes, tables, code, emphasis, links. Whatever else a text holds,
// HTML above all, stays the text it is: nothing is ever parsed as HTML.

const INLINE = /(`+)([^`]+?)\1|\*\*([^*]+)\*\*|__([^_]+)__|\*([^*\s][^*]*)\*|\b_([^_]+)_\b|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/;

function inline(text) {
  const made = [];
  for (let rest = text; rest; ) {
    const found = INLINE.exec(rest);
    if (!found) return [...made, rest];
    if (found.index) made.push(rest.slice(0, found.index));
    const [, , code, strong, strong2, soft, soft2, label, url] = found;
    if (code) made.push(make("code", {}, code));
    else if (strong ?? strong2) made.push(make("strong", {}, ...inline(strong ?? strong2)));
    else if (soft ?? soft2) made.push(make("em", {}, ...inline(soft ?? soft2)));
    else made.push(make("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, label));
    rest = rest.slice(found.index + found[0].length);
  }
  return made;
}

const STARTS = [
  [/^(```|~~~)/, (lines) => {
    const fence = lines.shift().slice(0, 3), code = [];
    while (lines.length && !lines[0].startsWith(fence)) code.push(lines.shift());
    lines.shift();
    return make("pre", {}, make("code", {}, code.join("\n")));
  }],
  [/^#{1,6}\s+/, (lines) => {
    const [, marks, text] = /^(#+)\s+(.*)$/.exec(lines.shift());
    return make(`h${Math.min(6, marks.length + 2)}`, {}, ...inline(text));
  }],
  [/^\s*([-*+]|\d+[.)])\s+/, list],
  [/^>\s?/, (lines) => {
    const inside = [];
    while (lines.length && /^>/.test(lines[0])) inside.push(lines.shift().replace(/^>\s?/, ""));
    return make("blockquote", {}, ...markdown(inside.join("\n")));
  }],
  [/^\|.*\|\s*$/, (lines) => {
    const rows = [];
    while (lines.length && /^\|.*\|\s*$/.test(lines[0])) rows.push(lines.shift().trim().slice(1, -1).split("|"));
    const shown = rows.filter((cells) => !cells.every((cell) => /^\s*:?-+:?\s*$/.test(cell)));
    const row = (cells, tag) => make("tr", {}, ...cells.map((cell) => make(tag, {}, ...inline(cell.trim()))));
    return make("table", {}, ...shown.map((cells, number) => row(cells, number || shown.length === rows.length ? "td" : "th")));
  }],
];

function list(lines) {
  const mark = /^(\s*)([-*+]|\d+[.)])\s+(.*)$/, [, indent, first] = mark.exec(lines[0]);
  const made = make(/\d/.test(first) ? "ol" : "ul");
  if (/\d/.test(first)) made.start = parseInt(first, 10);
  while (lines.length) {
    const found = mark.exec(lines[0]);
    if (!found || found[1].length < indent.length) break;
    if (found[1].length > indent.length && made.lastChild) made.lastChild.append(list(lines));
    else made.append(make("li", {}, ...inline((lines.shift(), found[3]))));
  }
  return made;
}

function markdown(text) {
  const lines = text.split("\n"), made = [];
  while (lines.length) {
    if (!lines[0].trim()) {
      lines.shift();
      continue;
    }
    const start = STARTS.find(([pattern]) => pattern.test(lines[0]));
    if (start) {
      made.push(start[1](lines));
      continue;
    }
    const words = [];
    while (lines.length && lines[0].trim() && !STARTS.some(([pattern]) => pattern.test(lines[0]))) words.push(lines.shift());
    const parts = words.flatMap((line, number) => (number ? [make("br"), ...inline(line)] : inline(line)));
    made.push(make("p", {}, ...parts));
  }
  return made;
}
