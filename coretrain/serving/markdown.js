"use strict";
// A little Markdown as elements: what a model says is never read as HTML.

function markdown(text, copy) {
  const out = document.createDocumentFragment();
  const lines = text.split("\n");
  let paragraph = [];
  let list = null;
  const close = () => {
    if (paragraph.length) out.append(element("p", inline(paragraph.join("\n"))));
    paragraph = [];
    list = null;
  };
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at];
    const fence = line.match(/^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/);
    if (fence) {
      close();
      const code = [];
      while (++at < lines.length && !closes(lines[at], fence[1])) code.push(lines[at]);
      out.append(block(code.join("\n"), fence[2], copy));
      continue;
    }
    const heading = line.match(/^#{1,6}\s+(.*)$/);
    const item = line.match(/^\s{0,6}(?:([-*+])|(\d{1,4})[.)])\s+(.*)$/);
    if (heading) {
      close();
      out.append(element("h3", inline(heading[1])));
    } else if (item) {
      const kind = item[1] ? "ul" : "ol";
      if (!list || list.tagName.toLowerCase() !== kind) {
        close();
        list = document.createElement(kind);
        if (item[2]) list.start = Number(item[2]);
        out.append(list);
      }
      list.append(element("li", inline(item[3])));
    } else if (!line.trim()) {
      close();
    } else {
      if (list) close();
      paragraph.push(line);
    }
  }
  close();
  return out;
}

function closes(line, fence) {
  const found = line.match(/^ {0,3}(`{3,}|~{3,})\s*$/);
  return found !== null && found[1][0] === fence[0] && found[1].length >= fence.length;
}

function block(code, language, copy) {
  const box = document.createElement("div");
  box.className = "block";
  const inner = element("code", [code]);
  if (language) inner.dataset.language = language;
  const button = element("button", ["Copy"]);
  button.type = "button";
  button.addEventListener("click", () => copy(code, button));
  box.append(element("pre", [inner]), button);
  return box;
}

function inline(text) {
  const parts = [];
  const form = /(`+)([\s\S]+?)\1(?!`)|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*/g;
  let at = 0;
  for (const found of text.matchAll(form)) {
    parts.push(text.slice(at, found.index));
    if (found[1]) parts.push(element("code", [found[2]]));
    else if (found[3]) parts.push(element("strong", [found[3]]));
    else parts.push(element("em", [found[4]]));
    at = found.index + found[0].length;
  }
  parts.push(text.slice(at));
  return parts;
}

function element(name, children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}
