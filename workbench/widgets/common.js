// What every widget's own file is appended to. Texts are set as text, never as HTML.

function make(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// The element a widget lives in. Keys pressed inside stay there: JupyterLab would move the cell, and of a key that
// begins one of its shortcuts of two ("0 0") it sends a second one a second later.
function rootOf(el, name) {
  const root = make("div", { className: `wb ${name}`, "data-lm-suppress-shortcuts": "true" });
  root.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
  });
  el.append(root);
  return root;
}

function button(text, act, props = {}) {
  const made = make("button", { type: "button", ...props }, text);
  made.addEventListener("click", act);
  return made;
}

// Calls each function now and whenever its trait changes; gives what takes them off again.
function follow(model, shows) {
  const events = Object.entries(shows).map(([trait, show]) => [`change:${trait}`, show]);
  for (const [event, show] of events) {
    model.on(event, show);
    show();
  }
  return () => events.forEach(([event, show]) => model.off(event, show));
}

// The reason why the last thing asked for did not happen.
function problemLine(model) {
  const line = make("p", { className: "wb-problem", role: "alert" });
  const show = () => {
    line.textContent = model.get("problem");
    line.hidden = !line.textContent;
  };
  model.on("change:problem", show);
  show();
  return line;
}
