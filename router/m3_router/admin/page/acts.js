// What an administrator may change: a button for each act that this router offers, a dialog that says what it will do,
// and the newest acts with who did them.

import { byId, fill, h, keyed, setText } from "./dom.js";
import { clock } from "./format.js";

const ACTS = {
  drain: {
    title: "Drain a worker",
    go: "Drain",
    text: ({ worker }) => `${worker} gets no new requests. What it is working on goes on to its end.`,
  },
  undrain: {
    title: "Take a worker back",
    go: "Take back",
    text: ({ worker }) => `${worker} gets requests again as soon as a probe finds it ready.`,
  },
  revoke: {
    title: "Revoke a key",
    go: "Revoke",
    button: "Revoke a key",
    text: () => "Requests with this key are refused within two seconds, by every replica.",
    ask: { name: "sha256", label: "SHA-256 digest of the key, not the key itself", pattern: "[0-9a-fA-F]{64}" },
  },
  reload: {
    title: "Reload",
    go: "Reload",
    button: "Reload keys and settings",
    text: () => "The files are read again now. If one of them cannot be used, what holds stays.",
  },
  "reset-affinity": {
    title: "Reset the affinity",
    go: "Reset",
    button: "Reset affinity",
    text: () => "This replica forgets which worker has which prefix, and learns it anew. Until then caches are used less.",
  },
};

export class ActPanel {
  constructor(feed) {
    this.feed = feed;
    this.current = null;
    byId("act-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.go();
    });
  }

  update(state) {
    const offered = state.acts.filter((name) => ACTS[name]?.button);
    keyed(byId("act-buttons"), offered, (name) => name, (name) => ({
      element: h("button", { type: "button", onclick: () => this.ask(name, {}) }, ACTS[name].button),
      update: () => {},
    }));
    // A router that offers nothing and remembers nothing needs no panel for it.
    const hasAny = state.acts.length > 0 || state.audit.length > 0;
    byId("acts").hidden = !hasAny;
    byId("tenants").classList.toggle("wide", !hasAny);
    byId("audit-empty").hidden = state.audit.length > 0;
    keyed(byId("audit-list"), state.audit, (entry) => `${entry.time} ${entry.audit} ${entry.outcome} ${Object.values(entry.what)}`, auditRow);
  }

  ask = (name, fields) => {
    const act = ACTS[name];
    this.current = { name, fields };
    setText(byId("act-title"), act.title);
    setText(byId("act-text"), act.text(fields));
    setText(byId("act-go"), act.go);
    byId("act-error").hidden = true;
    const { ask } = act;
    fill(
      byId("act-fields"),
      ask && h("label", {}, `${ask.label} `, h("input", { id: "act-input", required: true, pattern: ask.pattern, autocomplete: "off", spellcheck: "false" })),
    );
    byId("act").showModal();
  };

  async go() {
    const { name, fields } = this.current;
    const { ask } = ACTS[name];
    const asked = ask ? { [ask.name]: byId("act-input").value.trim() } : {};
    const button = byId("act-go");
    button.disabled = true;
    try {
      await this.feed.act(name, { ...fields, ...asked });
      byId("act").close();
    } catch (error) {
      setText(byId("act-error"), error.message);
      byId("act-error").hidden = false;
    } finally {
      button.disabled = false;
    }
  }
}

function auditRow(entry) {
  const tone = { done: "good", refused: "warn", failed: "bad" }[entry.outcome];
  const what = Object.values(entry.what).map((value) => (value.length > 40 ? `${value.slice(0, 12)}…` : value)).join(" / ");
  const element = h(
    "li.row.audit", {},
    h("div.row-head", {}, h("span.muted", {}, clock(entry.time)), h("b.name", {}, entry.audit), h("span", {}, what), h("span.pill", { "data-tone": tone }, entry.outcome)),
    h("p.why.muted", {}, `${entry.who}, ${entry.peer}: ${entry.message}`),
  );
  return { element, update: () => {} };
}
