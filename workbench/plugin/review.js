// The panel Conversations: an image beside what is said about it, to accept, reject and correct.
//
// Knows: how the panel looks, its keys, and the order in which requests are sent.
// Does not know: datasets or verdicts; `panel.py` does everything and answers with what is to be shown.
//
// Uses the globals of the App (React, its plugin registry and hooks), so that nothing has to be built. They are not
// documented: where one is missing, the console says which, and the App goes on without the panel.
(function () {
  "use strict";

  const globals = ["React", "__fop__", "__foo__", "__fos__", "__fosp__"];
  const missing = globals.filter((name) => !window[name]);
  if (missing.length) {
    console.error(`llava-workbench: this version of the App lacks ${missing.join(", ")}; no review panel`);
    return;
  }

  const React = window.React;
  const h = React.createElement;
  const { useCallback, useEffect, useRef, useState } = React;

  const STYLE = `
  .wbr { --line: var(--fo-palette-divider, #8884); --dim: var(--fo-palette-text-secondary, #999);
    --soft: var(--fo-palette-background-level2, #8882); --accept: #2e9e5b; --reject: #d5453c; --mark: #e8a317;
    --go: var(--fo-palette-primary-main, #ff6d04);
    display: flex; flex-direction: column; height: 100%; min-height: 0; box-sizing: border-box; outline: none;
    color: var(--fo-palette-text-primary, #ddd); font-size: 14px; line-height: 1.45; container-type: inline-size; }
  .wbr *, .wbr *::before { box-sizing: border-box; }
  .wbr button { font: inherit; color: inherit; cursor: pointer; border: 1px solid var(--line); border-radius: 6px;
    background: var(--soft); padding: 4px 10px; display: inline-flex; align-items: center; gap: 6px; white-space: nowrap; }
  .wbr button:hover:not(:disabled) { border-color: var(--dim); }
  .wbr button:focus-visible { outline: 2px solid var(--go); outline-offset: 1px; }
  .wbr button:disabled { opacity: .4; cursor: default; }
  .wbr button.accept { background: var(--accept); border-color: var(--accept); color: #fff; }
  .wbr button.reject { background: var(--reject); border-color: var(--reject); color: #fff; }
  .wbr button.quiet { background: none; border-color: transparent; padding: 1px 6px; color: var(--dim); font-size: 12px; }
  .wbr button.quiet:hover { color: inherit; border-color: var(--line); }
  .wbr kbd { font: 600 11px/1 ui-monospace, monospace; padding: 3px 5px; border-radius: 4px; background: #0003;
    border: 1px solid #fff3; opacity: .55; }
  .wbr.keys kbd { opacity: 1; }
  .wbr-top { padding: 10px 14px 8px; border-bottom: 1px solid var(--line); display: grid; gap: 8px; }
  .wbr-row { display: flex; align-items: center; gap: 6px 8px; flex-wrap: wrap; }
  .wbr-grow { flex: 1; }
  .wbr-dim { color: var(--dim); font-size: 12px; }
  .wbr-bar { height: 4px; border-radius: 2px; overflow: hidden; display: flex; background: var(--soft); }
  .wbr-bar i { display: block; height: 100%; }
  .wbr button.chip { padding: 2px 10px; border-radius: 99px; font-size: 12px; }
  .wbr button.chip.open { border-color: var(--go); box-shadow: inset 0 0 0 1px var(--go); }
  .wbr-dot { width: 8px; height: 8px; border-radius: 50%; border: 1px solid var(--dim); }
  .wbr-dot.accept { background: var(--accept); border-color: var(--accept); }
  .wbr-dot.reject { background: var(--reject); border-color: var(--reject); }
  .wbr-body { flex: 1; min-height: 0; display: flex; }
  .wbr-image { flex: 0 0 42%; padding: 14px; overflow: auto; border-right: 1px solid var(--line); }
  .wbr-image img { width: 100%; max-height: 100%; object-fit: contain; border-radius: 6px; display: block;
    background: var(--soft); margin-bottom: 8px; }
  .wbr-chat { flex: 1; min-width: 0; overflow: auto; padding: 14px; display: flex; flex-direction: column; gap: 10px; }
  @container (max-width: 560px) {
    .wbr-body { flex-direction: column; overflow: auto; }
    .wbr-image { flex: none; border-right: 0; padding-bottom: 0; }
    .wbr-image img { max-height: 38cqw; }
    .wbr-chat { overflow: visible; flex: none; }
  }
  .wbr-turn { display: flex; flex-direction: column; max-width: 94%; gap: 3px; }
  .wbr-turn.user { align-self: flex-end; align-items: flex-end; }
  .wbr-turn.assistant { align-self: flex-start; align-items: flex-start; }
  .wbr-turn.system { align-self: center; font-style: italic; }
  .wbr-turn.wide { width: 88%; }
  .wbr-turn.wide .wbr-tools { opacity: 1; }
  .wbr-says { padding: 8px 12px; border-radius: 12px; white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft);
    border: 1px solid var(--line); }
  .wbr-turn.user .wbr-says { border-bottom-right-radius: 3px; background: #3b82f626; border-color: #3b82f659; }
  .wbr-turn.assistant .wbr-says { border-bottom-left-radius: 3px; }
  .wbr-says.was { opacity: .75; border-style: dashed; font-size: 13px; }
  .wbr-says mark { background: #e8a31738; color: inherit; border-bottom: 2px solid var(--mark); border-radius: 2px; cursor: help; }
  .wbr-line { display: flex; align-items: center; gap: 4px; max-width: 100%; }
  .wbr-turn.user .wbr-line { flex-direction: row-reverse; }
  .wbr-tools { display: flex; gap: 2px; align-items: center; opacity: .55; }
  .wbr-turn:hover .wbr-tools, .wbr-tools:focus-within { opacity: 1; }
  .wbr textarea, .wbr input { font: inherit; color: inherit; width: 100%; padding: 8px 10px; border-radius: 8px;
    border: 1px solid var(--go); background: var(--fo-palette-background-body, #0002); resize: vertical; }
  .wbr input { width: auto; flex: 1 1 140px; min-width: 0; padding: 3px 8px; border-color: var(--line); }
  .wbr-foot { padding: 10px 14px; border-top: 1px solid var(--line); display: grid; gap: 8px; }
  .wbr-note { padding: 6px 12px; border-radius: 6px; border-left: 3px solid var(--mark); background: #e8a3171f; overflow-wrap: anywhere; }
  .wbr-note.saved { border-color: var(--accept); background: #2e9e5b1c; }
  .wbr-note.problem { border-color: var(--reject); background: #d5453c22; }
  .wbr-empty { margin: auto; padding: 24px; text-align: center; color: var(--dim); max-width: 42em; }
  `;

  if (!document.getElementById("wbr-style")) {
    const style = document.createElement("style");
    style.id = "wbr-style";
    style.textContent = STYLE;
    document.head.appendChild(style);
  }

  const KEYS = {
    a: "accept", r: "reject", s: "skip", ArrowRight: "next", ArrowLeft: "previous", e: "edit", n: "add", g: "regenerate",
  };
  const SIGN = { ArrowRight: "→", ArrowLeft: "←" };
  const keyOf = (action) => {
    const key = Object.keys(KEYS).find((one) => KEYS[one] === action);
    return h("kbd", null, SIGN[key] || key.toUpperCase());
  };
  const source = (path) => {
    const find = window.__fos__.getSampleSrc;
    return find ? find(path) : `/media?filepath=${encodeURIComponent(path)}`;
  };
  const editable = (node) => !!node && (node.matches?.("input, textarea, select") || node.isContentEditable);
  const remembered = (key) => { try { return localStorage.getItem(`wbr-${key}`); } catch { return null; } };
  const remember = (key, value) => { try { localStorage.setItem(`wbr-${key}`, value); } catch { /* private window */ } };

  function Button({ action, label, busy, act, kind, disabled }) {
    return h("button", {
      className: kind, disabled: busy || disabled, onClick: () => act(action), "data-cy": `wbr-${action}`, title: label,
    }, label, keyOf(action));
  }

  function Marked({ text, marks }) {
    const pieces = [];
    let end = 0;
    for (const mark of marks || []) {
      if (mark.from < end) continue;
      pieces.push(text.slice(end, mark.from));
      const title = `contradicts the annotations: ${mark.kind}`;
      pieces.push(h("mark", { key: mark.from, title, "data-cy": "wbr-mark" }, text.slice(mark.from, mark.to)));
      end = mark.to;
    }
    return h(React.Fragment, null, ...pieces, text.slice(end));
  }

  function Editor({ labels, texts, save, cancel }) {
    const [values, setValues] = useState(texts);
    const first = useRef(null);
    useEffect(() => { first.current?.focus(); first.current?.setSelectionRange?.(1e6, 1e6); }, []);
    const change = (place) => (event) => setValues(values.map((old, at) => (at === place ? event.target.value : old)));
    const empty = values.some((value) => !value.trim());
    const rows = (text) => Math.min(12, Math.max(2, Math.ceil(text.length / 48)));
    return h(React.Fragment, null,
      ...values.map((value, place) => h("textarea", {
        key: place, ref: place ? null : first, value, rows: rows(value), onChange: change(place), placeholder: labels[place],
        "aria-label": labels[place], "data-cy": `wbr-text-${place}`, "data-wbr-editor": "1",
      })),
      h("div", { className: "wbr-tools" },
        h("button", { className: "accept", disabled: empty, onClick: () => save(values), "data-cy": "wbr-save" },
          "save", h("kbd", null, "Ctrl ↵")),
        h("button", { onClick: cancel, "data-cy": "wbr-cancel" }, "cancel", h("kbd", null, "Esc"))));
  }

  function Turn({ turn, number, editing, setEditing, send, busy, alone }) {
    const open = editing === number;
    const changed = turn.changed && (turn.was == null ? "added by a person" : "changed by a person; before:");
    return h("div", { className: `wbr-turn ${turn.role} ${open ? "wide" : ""}`, "data-cy": `wbr-turn-${number}` },
      open
        ? h(Editor, {
          labels: [turn.role], texts: [turn.text], cancel: () => setEditing(null),
          save: ([text]) => { setEditing(null); send({ what: "edit", number, text }); },
        })
        : h(React.Fragment, null,
          h("div", { className: "wbr-line" },
            h("div", { className: "wbr-says", "data-cy": `wbr-says-${number}`, title: "double-click to edit",
              onDoubleClick: () => setEditing(number) }, h(Marked, turn)),
            h("div", { className: "wbr-tools" },
              h("button", { className: "quiet", disabled: busy, onClick: () => setEditing(number), "data-cy": `wbr-edit-${number}` }, "edit"),
              turn.role === "user" && !alone && h("button", {
                className: "quiet", disabled: busy, "data-cy": `wbr-delete-${number}`, title: "delete this question and its answer",
                onClick: () => send({ what: "delete", number }),
              }, "delete"))),
          changed && h("span", { className: "wbr-dim" }, changed),
          turn.was != null && h("div", { className: "wbr-says was", "data-cy": `wbr-was-${number}` }, turn.was)));
  }

  function Head({ shown, send, busy, teacher }) {
    const { accepted, rejected, total, place } = shown.queue;
    const share = (count) => ({ width: `${(100 * count) / Math.max(1, total)}%` });
    return h("div", { className: "wbr-top" },
      h("div", { className: "wbr-row" },
        h("b", { "data-cy": "wbr-place" }, `${place.toLocaleString()} of ${total.toLocaleString()}`),
        h("span", { className: "wbr-dim", "data-cy": "wbr-progress" },
          `${accepted.toLocaleString()} accepted, ${rejected.toLocaleString()} rejected, ${(total - accepted - rejected).toLocaleString()} open`),
        h("span", { className: "wbr-grow" }),
        shown.teacher && h("span", { className: "wbr-dim", title: "who wrote it" }, shown.teacher)),
      h("div", { className: "wbr-bar" },
        h("i", { style: { ...share(accepted), background: "var(--accept)" } }),
        h("i", { style: { ...share(rejected), background: "var(--reject)" } })),
      h("div", { className: "wbr-row" },
        ...shown.others.map((one) => h("button", {
          key: one.id, className: `chip ${one.id === shown.id ? "open" : ""}`, disabled: busy, "data-cy": `wbr-chip-${one.id}`,
          onClick: () => send({ what: "show", id: one.id }),
        }, h("span", { className: `wbr-dot ${one.verdict || ""}` }), one.task))));
  }

  function Teacher({ close, ask, waiting }) {
    const [model, setModel] = useState(remembered("model") || "rules");
    const [url, setUrl] = useState(remembered("url") || "");
    const go = () => { remember("model", model); remember("url", url); ask(model.trim(), model.trim() === "rules" ? "" : url.trim()); };
    return h("div", { className: "wbr-row" },
      h("input", { value: model, placeholder: "rules, or a model's name", "aria-label": "model", "data-cy": "wbr-model",
        onChange: (event) => setModel(event.target.value) }),
      model.trim() !== "rules" && h("input", { value: url, placeholder: "http://127.0.0.1:8000/v1", "aria-label": "endpoint",
        "data-cy": "wbr-url", onChange: (event) => setUrl(event.target.value) }),
      h("button", { onClick: go, disabled: waiting, "data-cy": "wbr-ask" }, waiting ? "asking ..." : "write anew"),
      h("button", { className: "quiet", onClick: close }, "close"));
  }

  function Review(props) {
    const trigger = window.__foo__.useTriggerPanelEvent();
    const close = window.__fos__.useClearModal?.();
    const pushed = props.data?.shown;
    const [shown, setShown] = useState(null);
    const [note, setNote] = useState(null);
    const [busy, setBusy] = useState(false);
    const [waiting, setWaiting] = useState(0);
    const [editing, setEditing] = useState(null);
    const [asking, setAsking] = useState(false);
    const [inside, setInside] = useState(false);
    const root = useRef(null);
    const chat = useRef(null);
    const latest = useRef({});

    const take = useCallback((next) => {
      if (!next) return;
      if (next.problem) { setNote({ problem: next.problem }); return; }
      setShown((old) => (old && old.serial > next.serial ? old : next));
    }, []);
    useEffect(() => take(pushed), [pushed, take]);
    useEffect(() => { setEditing(null); chat.current?.scrollTo?.(0, 0); }, [shown?.id]);
    useEffect(() => { root.current?.focus({ preventScroll: true }); }, []);

    const view = props.schema.view;
    const call = (operator, params, done) => {
      const start = performance.now();
      trigger(operator, params, false, (answer) => {
        const problem = answer?.error ? String(answer.error.message || answer.error) : answer?.result?.problem;
        done(problem, answer?.result, performance.now() - start);
        return false;
      });
    };
    const send = (params) => {
      if (busy || !shown) return;
      setBusy(true);
      setNote(null);
      call(view.do, { id: shown.id, ...params }, (problem, result, spent) => {
        setBusy(false);
        if (problem) { setNote({ problem }); return; }
        take(result);
        const saved = ["verdict", "edit", "add", "delete"].includes(params.what);
        if (saved) setNote({ saved: params.verdict ? `${params.verdict}ed` : "saved", spent });
        if (!editable(document.activeElement)) root.current?.focus({ preventScroll: true });
      });
    };
    const ask = (model, url) => {
      const { id, task } = shown;
      setWaiting((count) => count + 1);
      setNote(null);
      call(view.regenerate, { id, model, url }, (problem, result) => {
        setWaiting((count) => count - 1);
        if (problem) { setNote({ problem }); return; }
        if (latest.current.shown?.id === id) take(result);
        const why = result.reason ? `; ${result.reason}` : "";
        setNote({ text: `${task} was written anew by ${result.teacher || model}${why}` });
      });
    };
    const act = (action) => {
      if (action === "accept" || action === "reject") send({ what: "verdict", verdict: action });
      else if (action === "edit") setEditing(shown.messages.map((turn) => turn.role).lastIndexOf("assistant"));
      else if (action === "add") setEditing("add");
      else if (action === "regenerate") setAsking(!asking);
      else send({ what: action });
    };
    latest.current = { act, shown, inside, close };

    useEffect(() => {
      const onKey = (event) => {
        const { act, shown, inside, close } = latest.current;
        const own = root.current?.contains(event.target);
        if (own && editable(event.target)) {
          if (event.key === "Escape") { setEditing(null); root.current.focus({ preventScroll: true }); event.preventDefault(); }
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) root.current.querySelector("[data-cy=wbr-save]")?.click();
          event.stopImmediatePropagation();
          return;
        }
        if (!(own || inside) || editable(event.target) || !shown?.id) return;
        if (event.key === "Escape" && root.current.closest("[data-cy=modal]")) close?.();  // the App listens in its own tab only
        const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
        if (!action || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
        event.preventDefault();
        event.stopImmediatePropagation();
        act(action);
      };
      window.addEventListener("keydown", onKey, true);
      return () => window.removeEventListener("keydown", onKey, true);
    }, []);

    const frame = (...children) => h("div", {
      className: `wbr ${inside ? "keys" : ""}`, ref: root, tabIndex: -1, "data-cy": "wbr",
      onMouseEnter: () => setInside(true), onMouseLeave: () => setInside(root.current?.contains(document.activeElement)),
      onFocus: () => setInside(true), onBlur: (event) => setInside(!!root.current?.contains(event.relatedTarget)),
    }, ...children);
    if (!shown) return frame(h("div", { className: "wbr-empty", "data-cy": "wbr-problem" }, note?.problem || "reading the conversations ..."));
    if (!shown.id) return frame(h("div", { className: "wbr-empty" }, "No conversation in this view: choose another one, or generate some."));

    const single = shown.messages.filter((turn) => turn.role === "user").length < 2;
    const seen = { accept: "accepted", reject: "rejected" }[shown.verdict];
    const state = seen || (shown.status === "ok" ? "no verdict yet" : `${shown.status}: ${shown.reason || "no reason given"}`);
    return frame(
      h(Head, { shown, send, busy }),
      h("div", { className: "wbr-body" },
        h("div", { className: "wbr-image" },
          ...shown.images.map((path) => h("img", { key: path, src: source(path), alt: path, title: path, "data-cy": "wbr-image" })),
          h("div", { className: "wbr-dim" }, shown.images.map((path) => path.split(/[\\/]/).pop()).join(", ")),
          h("div", { className: "wbr-row" }, h("span", { className: `wbr-dot ${shown.verdict || ""}` }),
            h("span", { "data-cy": "wbr-state", className: "wbr-dim" }, state))),
        h("div", { className: "wbr-chat", ref: chat, "data-cy": "wbr-chat", "data-id": shown.id },
          ...shown.messages.map((turn, number) => h(Turn, {
            key: `${shown.id}-${number}`, turn, number, editing, setEditing, send, busy, alone: single,
          })),
          editing === "add"
            ? h("div", { className: "wbr-turn wide assistant" }, h(Editor, {
              labels: ["question", "answer"], texts: ["", ""], cancel: () => setEditing(null),
              save: ([question, answer]) => { setEditing(null); send({ what: "add", question, answer }); },
            }))
            : h("div", { className: "wbr-row" }, h("button", { className: "quiet", disabled: busy, onClick: () => act("add"), "data-cy": "wbr-add" },
              "add a question and answer", keyOf("add"))))),
      h("div", { className: "wbr-foot" },
        note && h("div", {
          className: `wbr-note ${note.problem ? "problem" : note.saved ? "saved" : ""}`, "data-cy": note.problem ? "wbr-problem" : "wbr-note",
          ...(note.spent ? { "data-saved-ms": Math.round(note.spent) } : {}),
        }, note.problem || note.text || `${note.saved}, on the disk after ${(note.spent / 1000).toFixed(2)} s`),
        asking && h(Teacher, { close: () => setAsking(false), ask, waiting: waiting > 0 }),
        h("div", { className: "wbr-row" },
          h(Button, { action: "accept", label: "accept", kind: "accept", busy, act }),
          h(Button, { action: "reject", label: "reject", kind: "reject", busy, act }),
          h(Button, { action: "skip", label: "skip", busy, act }),
          h("span", { className: "wbr-grow" }),
          h(Button, { action: "previous", label: "previous", busy, act }),
          h(Button, { action: "next", label: "next", busy, act }),
          h(Button, { action: "edit", label: "edit", busy, act }),
          h(Button, { action: "regenerate", label: waiting ? "asking ..." : "regenerate", busy, act }))));
  }

  window.__fop__.registerComponent({
    name: "WorkbenchReview",
    label: "WorkbenchReview",
    component: Review,
    type: window.__fop__.PluginComponentType.Component,
    activator: () => true,
  });
})();
