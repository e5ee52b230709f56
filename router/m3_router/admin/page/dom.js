// The few ways in which this page makes elements. All text goes in as text nodes, so that nothing that a client, a
// worker or a file has named can become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: h("li.worker", {title: "..."}, "text", child). A property of null or false is left out. */
export function h(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.classList.add(...classes);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  append(element, children);
  return element;
}

/** Replace all children. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
}

/** Set text only where it differs, so that a selection in it survives. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Set the length of a bar, a share of 0 to 1. (By the style object: the policy forbids style attributes.) */
export function setShare(element, share) {
  element.style.setProperty("--share", String(Math.min(Math.max(share || 0, 0), 1)));
}

/**
 * Make `parent` hold one element for each item, in order, keeping the elements of items that stay, so that focus and
 * selection outlive a refresh. make(item) returns {element, update(item)}.
 */
export function keyed(parent, items, keyOf, make) {
  const known = parent.madeByKey ?? (parent.madeByKey = new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, made] of known) {
    if (!wanted.has(key)) {
      made.element.remove();
      known.delete(key);
    }
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let made = known.get(key);
    if (!made) {
      made = make(item);
      known.set(key, made);
    }
    made.update(item);
    if (made.element === place) place = place.nextElementSibling;
    else parent.insertBefore(made.element, place);
  }
}

export const byId = (id) => document.getElementById(id);

function append(element, children) {
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}
