"use strict";
// A conversation with the server's own /v1/chat/completions.

const $ = (id) => document.getElementById(id);
const talk = [];
let running = null;

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function said(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function loadModels() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) {
      if (response.status === 401) showSettings(true);
      return showError(await said(response));
    }
    const held = $("model").value;
    const models = (await response.json()).data;
    $("model").replaceChildren(...models.map((model) => {
      const option = new Option(model.chat ? model.id : `${model.id} (no chat)`, model.id);
      option.disabled = !model.chat;
      return option;
    }));
    if (models.some((model) => model.id === held && model.chat)) $("model").value = held;
    document.title = `${$("model").value} · twintrain`;
    clearError();
    if (!models.some((model) => model.chat)) showError("this run has no chat template: only /v1/completions answers");
  } catch {
    showError("the server can't be reached");
  }
}

function clearError() {
  for (const old of document.querySelectorAll(".error")) old.remove();
}

function showError(text) {
  clearError();
  const box = element("p", [text]);
  box.className = "error";
  box.setAttribute("role", "alert");
  $("talk").append(box);
  box.scrollIntoView({ block: "end" });
}

async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => { button.textContent = before; }, 1200);
}

function button(text, does) {
  const made = element("button", [text]);
  made.type = "button";
  made.addEventListener("click", does);
  return made;
}

function show() {
  $("empty").hidden = talk.length > 0;
  for (const old of document.querySelectorAll(".turn")) old.remove();
  talk.forEach((turn, at) => $("talk").append(shown(turn, at)));
  bottom(true);
}

function shown(turn, at) {
  const box = document.createElement("article");
  box.className = `turn ${turn.role}`;
  const text = document.createElement("div");
  text.className = "text";
  if (turn.role === "user") text.append(turn.content);
  else text.append(markdown(turn.content, copy));
  const under = document.createElement("div");
  under.className = "under";
  turn.text = text;
  turn.under = under;
  box.append(text, under);
  finish(turn, at);
  return box;
}

function finish(turn, at) {
  const live = running && running.turn === turn;
  turn.text.classList.toggle("writing", Boolean(live));
  turn.under.replaceChildren();
  if (running) return;
  if (turn.role === "user") turn.under.append(button("Edit", () => edit(at)));
  else {
    turn.under.append(button("Copy", (event) => copy(turn.content, event.target)));
    if (at === talk.length - 1) turn.under.append(button("Regenerate", () => answer(at)));
    if (turn.note) turn.under.append(turn.note);
  }
}

function edit(at) {
  if (running) return;
  const turn = talk[at];
  const field = document.createElement("textarea");
  field.value = turn.content;
  field.rows = Math.min(10, turn.content.split("\n").length + 1);
  field.setAttribute("aria-label", "Edit the message");
  const save = () => {
    const text = field.value.trim();
    if (!text) return;
    talk.splice(at, talk.length, { role: "user", content: text });
    answer(talk.length);
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); save(); }
  });
  turn.text.replaceWith(field);
  turn.under.replaceChildren(button("Send", save), button("Cancel", show));
  field.focus();
}

function number(id) {
  const text = $(id).value.trim();
  return text === "" ? undefined : Number(text);
}

function body(messages) {
  const system = $("system").value.trim();
  return {
    model: $("model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    temperature: number("temperature"), top_p: number("top_p"), max_tokens: number("max_tokens"), seed: number("seed"),
    stream: true, stream_options: { include_usage: true },
  };
}

async function answer(at) {
  clearError();
  talk.splice(at);
  const messages = talk.map(({ role, content }) => ({ role, content }));
  const turn = { role: "assistant", content: "", note: "" };
  talk.push(turn);
  running = { turn, stop: new AbortController() };
  busy(true);
  show();
  let first = 0, reason = "", usage = null, failed = "";
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body(messages)), signal: running.stop.signal,
    });
    if (!response.ok) throw new Error(await said(response));
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      if (choice && choice.delta.content) {
        first = first || performance.now();
        turn.content += choice.delta.content;
        render(turn);
      }
      reason = (choice && choice.finish_reason) || reason;
      usage = event.usage || usage;
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "stopped";
    else failed = error instanceof TypeError ? "the server can't be reached" : error.message;
  }
  const seconds = (performance.now() - first) / 1000;
  const notes = [];
  if (usage) notes.push(`${usage.completion_tokens} tokens`);
  if (usage && usage.completion_tokens > 1) notes.push(`${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s`);
  if (reason === "length") notes.push("cut at its most tokens");
  if (reason === "stopped") notes.push("stopped");
  turn.note = notes.join(" · ");
  if (!turn.content) talk.pop(); // nothing was said: the question stays, and can be sent again
  running = null;
  busy(false);
  show();
  if (failed) showError(failed);
  else if (!turn.content && reason !== "stopped") showError("the model said nothing");
  $("question").focus();
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

let drawn = 0;
function render(turn) {
  if (drawn) return; // once a frame is enough
  drawn = requestAnimationFrame(() => {
    drawn = 0;
    const stay = bottom(false);
    if (turn.text && running && running.turn === turn) turn.text.replaceChildren(markdown(turn.content, copy));
    if (stay) bottom(true);
  });
}

function bottom(go) {
  const box = $("talk");
  const there = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  if (go) box.scrollTop = box.scrollHeight;
  return there;
}

function busy(is) {
  $("talk").setAttribute("aria-busy", String(is));
  $("send").hidden = is;
  $("stop").hidden = !is;
  $("fresh").disabled = is;
}

function send() {
  const text = $("question").value.trim();
  if (running) return;
  const last = talk[talk.length - 1];
  if (!text && !(last && last.role === "user")) return;
  if (text) {
    if (last && last.role === "user") talk.pop(); // it was never answered
    talk.push({ role: "user", content: text });
  }
  $("question").value = "";
  grow();
  answer(talk.length);
}

function stop() {
  if (running) running.stop.abort();
}

function grow() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

function showSettings(is) {
  $("settings").hidden = !is;
  $("settings-open").setAttribute("aria-expanded", String(is));
}

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
$("question").addEventListener("input", grow);
$("stop").addEventListener("click", stop);
$("fresh").addEventListener("click", () => { if (!running) { talk.splice(0); clearError(); show(); $("question").focus(); } });
$("settings-open").addEventListener("click", () => showSettings($("settings").hidden));
$("key").addEventListener("change", loadModels);
$("model").addEventListener("change", () => { document.title = `${$("model").value} · twintrain`; });
$("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  setTheme(now === "dark" ? "light" : "dark");
  try { localStorage.setItem("theme", document.documentElement.dataset.theme); } catch { /* not kept */ }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
try { setTheme(localStorage.getItem("theme")); } catch { /* not kept */ }
loadModels();
