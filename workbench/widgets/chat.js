// A chat. Draws `exchanges`, which Python changes by messages: {put: exchange, number} begins one and drops what was
// behind it; {reply: text, number, model} is more of an answer; {reply: {...}, number, model} its end. Sends
// {do: action, ...}; a file goes in parts.

const PART = 1 << 20; // bytes of a file sent at once
const ENDS = { length: "cut: max_tokens, or the context is full", cancelled: "stopped", failed: "" };

function told(exchanges, message) {
  const before = exchanges[message.number];
  if (message.put) return [...exchanges.slice(0, message.number), message.put];
  if (!before) return exchanges;
  const replies = [...before.replies], now = replies[message.model];
  replies[message.model] = typeof message.reply === "string" ? { ...now, text: now.text + message.reply } : message.reply;
  return exchanges.with(message.number, { ...before, replies });
}

function initialize({ model }) {
  const hear = (message) => {
    if (message.number !== undefined) model.set("exchanges", told(model.get("exchanges"), message));
  };
  model.on("msg:custom", hear);
  return () => model.off("msg:custom", hear);
}

async function send(model, file) {
  const key = `${Date.now()}-${Math.random()}`;
  for (let start = 0; start === 0 || start < file.size; start += PART) {
    const part = await file.slice(start, start + PART).arrayBuffer();
    model.send({ do: "upload", key, name: file.name, last: start + PART >= file.size }, undefined, [part]);
  }
}

async function copy(text, pressed) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page that is not served securely
    const area = make("textarea", { value: text });
    pressed.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = pressed.textContent;
  pressed.textContent = "Copied";
  setTimeout(() => (pressed.textContent = before), 1200);
}

function pictures(list) {
  const images = list.map((one) => make("img", { src: one.picture, alt: one.name, title: one.name }));
  return images.length ? make("div", { className: "wb-pictures" }, ...images) : null;
}

function replyBox(model, reply, place) {
  const { number, side, names, last, write } = place;
  const box = make("div", { className: "wb-reply" });
  box.dataset.state = reply.state;
  if (names.length > 1) box.append(make("small", { className: "wb-name" }, names[side]));
  box.append(make("div", { className: "wb-said" }, ...markdown(reply.text)));
  if (reply.state === "writing") return box;
  const speed = reply.tokens && reply.seconds ? `${reply.tokens} tokens, ${(reply.tokens / reply.seconds).toFixed(0)}/s` : "";
  const note = reply.problem || [ENDS[reply.state], speed].filter(Boolean).join(", ");
  const tools = make("div", { className: "wb-tools" }, make("small", { className: reply.problem ? "wb-problem" : "" }, note));
  if (reply.text) tools.append(button("Copy", (event) => copy(reply.text, event.target)));
  if (last && !side) tools.append(button("Regenerate", () => model.send({ do: "regenerate" })));
  if (reply.text && reply.state !== "failed") tools.append(button("Save", () => write.save(number, side), { title: "put the chat up to here into a dataset" }));
  box.append(tools);
  return box;
}

function exchangeBox(model, exchange, place) {
  const asked = make("div", { className: "wb-asked" }, pictures(exchange.pictures), make("p", {}, exchange.question));
  const edit = button("Edit", () => {
    const area = make("textarea", { value: exchange.question, rows: 2, "aria-label": "question" });
    const again = () => area.value.trim() && model.send({ do: "edit", number: place.number, text: area.value });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey) event.preventDefault(), again();
      if (event.key === "Escape") asked.replaceWith(exchangeBox(model, exchange, place).firstChild);
    });
    const tools = make("div", { className: "wb-tools" }, button("Ask again", again));
    asked.replaceChildren(...[pictures(exchange.pictures), area, tools].filter(Boolean));
    area.focus();
  });
  asked.append(make("div", { className: "wb-tools" }, edit, button("Copy", (event) => copy(exchange.question, event.target))));
  const replies = exchange.replies.map((reply, side) => replyBox(model, reply, { ...place, side }));
  return make("article", { className: "wb-exchange" }, asked, make("div", { className: "wb-replies" }, ...replies));
}

function parameters(model) {
  const fields = make("div", { className: "wb-fields" });
  const show = () => {
    const options = model.get("options");
    fields.replaceChildren(...Object.entries(options).map(([key, value]) => {
      const input = make("input", { type: "text", inputMode: "decimal", value: value ?? "", size: 6 });
      input.addEventListener("change", () => model.send({ do: "set", key, value: input.value.trim() }));
      return make("label", {}, make("small", {}, key), input);
    }));
  };
  return [make("details", {}, make("summary", {}, "Parameters"), fields), show];
}

function render({ model, el }) {
  const root = rootOf(el, "wb-chat"), names = model.get("names");
  const log = make("div", { className: "wb-log", role: "log", "aria-label": "chat" });
  const chips = make("div", { className: "wb-chips" });
  const question = make("textarea", { rows: 2, placeholder: "Ask. Drop, paste or attach pictures, videos, PDF files.", "aria-label": "question" });
  const path = make("input", { type: "text", placeholder: "path of a picture, video or PDF file", "aria-label": "path", hidden: true });
  const files = make("input", { type: "file", multiple: true, accept: "image/*,video/*,.pdf", hidden: true });
  const dataset = make("input", { type: "text", placeholder: "dataset folder", "aria-label": "dataset folder", size: 18 });
  const saved = make("small", { role: "status" });
  const history = make("select", { "aria-label": "earlier chats" });
  const busy = () => (model.get("exchanges").at(-1)?.replies ?? []).some((reply) => reply.state === "writing");
  const go = button("Send", () => (busy() ? model.send({ do: "stop" }) : ask()), { className: "wb-go" });
  const [options, showOptions] = parameters(model);
  const write = { save: (number, side) => model.send({ do: "save", number, model: side, dataset: dataset.value }) };

  const attach = button("Attach", () => files.click());
  const byPath = button("Path", () => {
    path.hidden = !path.hidden;
    if (!path.hidden) path.focus();
  });
  const fresh = button("New chat", () => model.send({ do: "clear" }));
  root.append(
    make("div", { className: "wb-chat-head" }, make("b", {}, names.join(" and ")), make("span", { className: "wb-right-side" }, history, fresh)),
    log, problemLine(model), chips, path,
    make("div", { className: "wb-composer" }, question, go),
    make("div", { className: "wb-chat-foot" }, attach, byPath, files, options,
      make("label", { className: "wb-right-side" }, saved, make("small", {}, "save to"), dataset)),
  );

  function ask() {
    if (!question.value.trim()) return;
    model.send({ do: "ask", text: question.value });
    question.value = "";
  }
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!busy()) ask();
    } else if (event.key === "ArrowUp" && !question.value) {
      question.value = model.get("exchanges").at(-1)?.question ?? "";
      event.preventDefault();
    }
  });
  root.addEventListener("keydown", (event) => event.key === "Escape" && busy() && model.send({ do: "stop" }));
  path.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    model.send({ do: "attach", path: path.value });
    path.value = "";
  });
  files.addEventListener("change", () => {
    for (const file of files.files) send(model, file);
    files.value = "";
  });
  root.addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    for (const file of event.clipboardData.files) send(model, file);
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    root.addEventListener(kind, (event) => {
      event.preventDefault();
      event.stopPropagation();
      root.classList.toggle("wb-dropping", kind === "dragenter" || kind === "dragover");
      if (kind !== "drop") return;
      for (const file of event.dataTransfer.files) send(model, file);
      const text = event.dataTransfer.files.length ? "" : event.dataTransfer.getData("text/plain");
      if (text) model.send({ do: "attach", path: text });
    });
  }
  history.addEventListener("change", () => {
    if (history.value !== "") model.send({ do: "restore", number: Number(history.value) });
  });

  let drawn = []; // what each box in the log was drawn from
  function showExchanges() {
    const now = model.get("exchanges"), end = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    while (log.children.length > now.length) log.lastChild.remove();
    now.forEach((exchange, number) => {
      const last = number === now.length - 1;
      if (drawn[number]?.exchange === exchange && drawn[number].last === last) return;
      const box = exchangeBox(model, exchange, { number, names, last, write });
      if (log.children[number]) log.children[number].replaceWith(box);
      else log.append(box);
    });
    const grew = now.length > drawn.length;
    drawn = now.map((exchange, number) => ({ exchange, last: number === now.length - 1 }));
    const toEnd = () => (log.scrollTop = log.scrollHeight);
    if (end || grew) {
      toEnd();
      const shown = log.lastChild?.querySelectorAll("img") ?? [];
      for (const image of shown) if (!image.complete) image.addEventListener("load", toEnd, { once: true });
    }
    log.hidden = !now.length;
    go.textContent = busy() ? "Stop" : "Send";
    go.classList.toggle("wb-stop", busy());
  }

  function showWaiting() {
    chips.replaceChildren(...model.get("waiting").map((one, number) => {
      const away = button("×", () => model.send({ do: "detach", number }), { "aria-label": `remove ${one.name}` });
      return make("span", { className: "wb-chip" }, make("img", { src: one.picture, alt: "" }), make("span", {}, one.name), away);
    }));
  }

  function showEarlier() {
    const earlier = model.get("earlier");
    history.hidden = !earlier.length;
    history.replaceChildren(make("option", { value: "" }, "Earlier chats"));
    earlier.forEach((question, number) => history.append(make("option", { value: number }, question.slice(0, 60))));
  }

  const showDataset = () => (dataset.value = model.get("dataset") || dataset.value);
  const showSaved = () => (saved.textContent = model.get("saved"));
  return follow(model, { exchanges: showExchanges, waiting: showWaiting, options: showOptions, earlier: showEarlier, dataset: showDataset, saved: showSaved });
}

export default { initialize, render };
