// Small helpers for the host's nodes and widgets, in both of its renderers.
import { app } from "../../scripts/app.js";

export function named(node, name) {
  return node.widgets?.find((each) => each.name === name);
}

export function isLinked(node, name) {
  return node.inputs?.some((input) => input.widget?.name === name && input.link != null) ?? false;
}

// Calls `act` after a method of an object that the host may have set.
export function after(object, method, act) {
  const before = object[method];
  object[method] = function (...given) {
    const result = before?.apply(this, given);
    act(...given);
    return result;
  };
}

// Replaces a list's options. The new renderer only notices that a node's widgets were assigned anew.
export function setOptions(node, widget, values) {
  widget.options.values = values;
  node.widgets = [...node.widgets];
  node.setDirtyCanvas?.(true, true);
}

// Makes a change that Ctrl+Z takes back.
export function changing(act) {
  app.canvas?.emitBeforeChange?.();
  try {
    act();
  } finally {
    app.canvas?.emitAfterChange?.();
  }
}

// Returns a function that calls `act` once, `wait` milliseconds after the last of several calls.
export function settled(act, wait = 0) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, wait);
  };
}
