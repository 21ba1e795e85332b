// The player: walks through the taps, torch and JAX side by side, the error as colour.
(() => {
  const source = document.getElementById("film");
  if (!source) return;
  const film = JSON.parse(source.textContent), frames = film.frames, last = frames.length - 1;
  const bytes = Uint8Array.from(atob(film.grids), (letter) => letter.charCodeAt(0)).buffer;
  const the = (id) => document.getElementById(id);
  const strip = the("strip"), seek = the("seek"), names = ["torch", "jax", "difference"];
  const maps = names.map(the), ways = [...document.querySelectorAll(".way")];
  const LOW = -17, GUTTER = 36, BASE = 22, TOP = 20;
  const first = frames.findIndex((frame) => frame.first);
  let way = ways.length ? "forced" : Object.keys(frames.find((f) => Object.keys(f.ways).length)?.ways ?? { free: 0 })[0];
  let at = Math.max(first, 0), cell = -1, timer = 0, moved = false, colours = {};

  const value = (number) => (number === "inf" ? Infinity : number);
  const share = (error) => (error === null || error === undefined ? 0 : Number.isNaN(error) ? 1
    : Math.min(1, Math.max(0, (Math.log10(Math.max(error, 1e-300)) - LOW) / -LOW)));
  const short = (number) => (number === null ? "not run" : number === Infinity ? "no number" : number === 0 ? "0"
    : number.toExponential(1).replace(".0e", "e").replace("e+0", ""));
  const errorOf = (frame, how) => { const own = value(frame[how]); return own === null ? value(frame.free ?? frame.forced) : own; };
  const above = (frame, how) => frame.judged && !(errorOf(frame, how) <= value(frame.cap));
  const grids = frames.map(() => ({}));
  const gridOf = (index) => {
    const frame = frames[index], how = way in frame.ways ? way : Object.keys(frame.ways)[0];
    if (how === undefined) return null;
    if (!grids[index][how]) {
      const count = frame.tall * frame.wide, start = frame.ways[how];
      const [torch, jax, difference] = [0, 1, 2].map((n) => new Float32Array(bytes, start + 4 * count * n, count));
      grids[index][how] = { torch, jax, difference, place: new Uint32Array(bytes, start + 12 * count, count), count };
    }
    return grids[index][how];
  };

  // --- colours ---
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const parts = (hex) => [1, 3, 5].map((n) => parseInt(hex.slice(n, n + 2), 16));
  const mix = (a, b, t) => `rgb(${a.map((x, n) => Math.round(x + (b[n] - x) * t)).join(",")})`;
  const readColours = () => {
    for (const name of ["equal", "calm0", "calm1", "hot0", "hot1", "low", "mid", "high", "ink"]) colours[name] = parts(style(name));
    for (const name of ["fg", "dim", "line", "bad", "main", "card"]) colours[name] = style(name);
  };
  const heat = (error, cap) => {
    if (error === 0) return mix(colours.equal, colours.equal, 0);
    const t = share(error), edge = share(cap);
    return error <= cap ? mix(colours.calm0, colours.calm1, edge ? t / edge : 1)
      : mix(colours.hot0, colours.hot1, edge < 1 ? (t - edge) / (1 - edge) : 1);
  };
  const tint = (share) => (share < 0 ? mix(colours.mid, colours.low, Math.min(1, -share)) : mix(colours.mid, colours.high, Math.min(1, share)));

  // --- drawing ---
  const sized = (canvas) => {
    const scale = window.devicePixelRatio || 1, wide = canvas.clientWidth, tall = canvas.clientHeight;
    if (canvas.width !== Math.round(wide * scale) || canvas.height !== Math.round(tall * scale)) {
      canvas.width = Math.round(wide * scale);
      canvas.height = Math.round(tall * scale);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, wide, tall);
    return [pen, wide, tall];
  };
  const drawStrip = () => {
    const [pen, wide, tall] = sized(strip), step = (wide - GUTTER) / frames.length, height = tall - TOP - BASE;
    const x = (index) => GUTTER + index * step, y = (error) => TOP + height * (1 - share(error));
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    for (const power of [0, -5, -10, -15]) {
      pen.fillStyle = colours.dim;
      pen.textAlign = "right";
      pen.fillText(power ? `1e${power}` : "1", GUTTER - 5, y(10 ** power));
      pen.fillStyle = colours.line;
      pen.fillRect(GUTTER, Math.round(y(10 ** power)), wide - GUTTER, 1);
    }
    pen.textAlign = "left";
    const turn = frames.findIndex((frame) => frame.stage === "cotangent");
    for (const [from, to, words] of [[0, turn < 0 ? frames.length : turn, "forward \u2192"], [turn, frames.length, "backward \u2192"]]) {
      if (from < 0 || to === from) continue;
      pen.fillStyle = colours.dim;
      pen.fillText(words, x(from) + 2, tall - BASE / 2 + 3);
      if (from) pen.fillRect(Math.round(x(from)), TOP - 6, 1, height + 6 + BASE);
    }
    const gap = step > 6 ? 2 : step > 3 ? 1 : 0, bar = Math.max(0.6, Math.min(step - gap, 40)), inset = (step - gap - bar) / 2;
    const left = (index) => x(index) + Math.max(0, inset);
    frames.forEach((frame, index) => {
      const error = errorOf(frame, way), top = Math.min(y(error), TOP + height - 2);
      pen.fillStyle = heat(error ?? 0, value(frame.cap));
      pen.fillRect(left(index), top, bar, TOP + height - top);
      pen.fillStyle = colours.dim;
      if (frame.judged) pen.fillRect(x(index), y(value(frame.cap)), step, 1);
      if (above(frame, way) && step > 4) {
        pen.fillStyle = colours.fg;
        pen.beginPath();
        pen.arc(left(index) + bar / 2, top - 4, Math.min(2.2, step / 3), 0, 7);
        pen.fill();
      }
    });
    if (first >= 0) {
      pen.fillStyle = colours.bad;
      pen.textAlign = first > frames.length / 2 ? "right" : "left";
      const middle = left(first) + bar / 2;
      pen.font = "600 12px system-ui, sans-serif";
      pen.fillText("parts here", middle + (first > frames.length / 2 ? -9 : 9), 7);
      pen.beginPath();
      pen.moveTo(middle - 5, 2);
      pen.lineTo(middle + 5, 2);
      pen.lineTo(middle, 11);
      pen.fill();
      pen.fillRect(middle - 0.5, 11, 1, 5);
    }
    pen.strokeStyle = colours.main;
    pen.lineWidth = 2;
    pen.strokeRect(left(at) - 1.5, TOP - 3, bar + 3, height + 6);
  };
  const drawMap = (canvas, kind, grid, frame) => {
    const [pen, wide, tall] = sized(canvas);
    if (!grid) {
      pen.fillStyle = colours.dim;
      pen.font = "13px system-ui, sans-serif";
      pen.textAlign = "center";
      const shape = kind === "difference" ? null : frame[kind];
      pen.fillText(kind === "difference" ? "nothing to compare" : shape ? `[${shape.join(", ")}]` : "missing here", wide / 2, tall / 2);
      return;
    }
    if (kind === "difference" && grid.difference.every((apart) => apart === 0)) {
      pen.fillStyle = mix(colours.equal, colours.equal, 0);
      pen.fillRect(0, 0, wide, tall);
      pen.fillStyle = colours.dim;
      pen.font = "13px system-ui, sans-serif";
      pen.textAlign = "center";
      pen.fillText("equal to the last bit", wide / 2, tall / 2);
      return;
    }
    const worst = Math.abs(grid.difference[worstCell(grid)]) / frame.rms;
    const w = wide / frame.wide, h = tall / frame.tall, gap = Math.min(w, h) > 5 ? 1 : 0, cap = value(frame.cap) ?? Infinity;
    for (let n = 0; n < grid.count; n++) {
      const x = (n % frame.wide) * w, y = Math.floor(n / frame.wide) * h, number = grid[kind][n];
      const error = Math.abs(grid.difference[n]) / frame.rms;
      const broken = kind === "difference" ? Number.isNaN(error) : !Number.isFinite(number);
      pen.fillStyle = broken ? colours.card : kind === "difference" ? heat(grid.difference[n] === 0 ? 0 : error, cap)
        : tint(number / (2.5 * (frame.rms || 1)));
      pen.fillRect(x, y, w - gap, h - gap);
      if (broken) {
        pen.strokeStyle = colours.bad;
        pen.lineWidth = 1.2;
        pen.beginPath();
        pen.moveTo(x + 1, y + 1); pen.lineTo(x + w - gap - 1, y + h - gap - 1);
        pen.moveTo(x + w - gap - 1, y + 1); pen.lineTo(x + 1, y + h - gap - 1);
        pen.stroke();
      } else if (kind === "difference" && error > cap) {
        pen.fillStyle = colours.card;
        pen.beginPath();
        const size = Number.isFinite(worst) ? Math.max(0, 1 + Math.log10(error / worst) / 2) : 0.5; // over two decades
        pen.arc(x + (w - gap) / 2, y + (h - gap) / 2, Math.max(0.7, Math.min(w, h) * (0.06 + 0.15 * size)), 0, 7);
        pen.fill();
      }
    }
    if (cell >= 0) {
      pen.strokeStyle = colours.fg;
      pen.lineWidth = 2;
      pen.strokeRect((cell % frame.wide) * w + 1, Math.floor(cell / frame.wide) * h + 1, Math.max(1, w - gap - 2), Math.max(1, h - gap - 2));
    }
  };
  const worstCell = (grid) => {
    let best = 0;
    for (let n = 0; n < grid.count; n++) {
      if (Number.isNaN(grid.difference[n])) return n;
      if (Math.abs(grid.difference[n]) > Math.abs(grid.difference[best])) best = n;
    }
    return best;
  };
  const index = (flat, shape) => {
    const found = [];
    for (let n = shape.length - 1; n >= 0; n--) { found.unshift(flat % shape[n]); flat = Math.floor(flat / shape[n]); }
    return `[${found.join(", ")}]`;
  };
  const span = (cellAt, cells, whole) => {
    const from = Math.floor((whole * cellAt) / cells), to = Math.floor((whole * (cellAt + 1)) / cells) - 1;
    return to > from ? `${from} to ${to}` : `${from}`;
  };
  const number = (x) => (Number.isNaN(x) ? "not a number" : !Number.isFinite(x) ? `${x > 0 ? "" : "-"}infinity` : Number(x.toPrecision(7)).toString());
  const sayCell = (grid, frame) => {
    if (!grid) { the("cell").textContent = ""; return; }
    const shape = frame.torch, channels = shape.length ? shape[shape.length - 1] : 1;
    const rows = shape.slice(0, -1).reduce((a, b) => a * b, 1), column = cell % frame.wide, row = Math.floor(cell / frame.wide);
    const apart = grid.difference[cell], relative = Math.abs(apart) / frame.rms;
    const place = `row${/to/.test(span(row, frame.tall, rows)) ? "s" : ""} ${span(row, frame.tall, rows)}, channel${
      /to/.test(span(column, frame.wide, channels)) ? "s" : ""} ${span(column, frame.wide, channels)}`;
    const much = apart === 0 ? "equal to the last bit" : !Number.isFinite(apart) ? "one of the two isn't finite"
      : `JAX less torch ${short(Math.abs(apart) * frame.unit).replace(/^/, apart < 0 ? "-" : "")}, ${short(relative)} of torch's rms`;
    the("cell").textContent = `${place}: at ${index(grid.place[cell], shape)} torch has ${number(grid.torch[cell] * frame.unit)}, JAX ${
      number(grid.jax[cell] * frame.unit)}: ${much}.`;
  };
  const show = () => {
    const frame = frames[at], grid = gridOf(at);
    if (grid && (cell < 0 || cell >= grid.count)) cell = worstCell(grid);
    drawStrip();
    maps.forEach((canvas, n) => drawMap(canvas, names[n], grid, frame));
    seek.value = at;
    const error = errorOf(frame, way), over = above(frame, way);
    the("name").textContent = frame.title;
    const shape = frame.torch ? `[${frame.torch.join(", ")}]` : "missing in torch";
    const other = frame.jax ? `[${frame.jax.join(", ")}]` : "missing in JAX";
    const sizes = JSON.stringify(frame.torch) === JSON.stringify(frame.jax) ? shape : `${shape} in torch, ${other} in JAX`;
    const how = !frame.judged ? "not judged" : error === Infinity ? "\u25b2 parts: missing, of another shape, or not a number" : `${over ? "\u25b2 parts" : "agrees"}: error ${short(error)}, cap ${short(value(frame.cap))}`;
    the("said").innerHTML = "";
    const mark = document.createElement("b");
    mark.textContent = how;
    if (over) mark.className = "fail";
    const where = `${at + 1} of ${frames.length}, ${frame.stage === "forward" ? "forward" : "backward"}, ${sizes}`;
    the("said").append(mark, ` \u00b7 ${where}${frame.note ? ` \u00b7 ${frame.note}` : ""}${frame.first ? " \u00b7 the place of the verdict" : ""}`);
    seek.setAttribute("aria-valuetext", `${frame.title}: ${how}`);
    the("dtype-torch").textContent = frame.dtypes[0];
    the("dtype-jax").textContent = frame.dtypes[1];
    maps.forEach((canvas, n) => canvas.setAttribute("aria-label", `${names[n]}, ${frame.tall} by ${frame.wide} cells`));
    const mark2 = the("cap-mark"), cap = value(frame.cap);
    mark2.hidden = cap === null || !Number.isFinite(cap) || cap === 0;
    mark2.style.left = `${100 * share(cap)}%`;
    the("ramp").replaceChildren(...Array.from({ length: 68 }, (_, n) => {
      const piece = document.createElement("span");
      piece.style.background = heat(10 ** (LOW - (LOW * (n + 0.5)) / 68), cap ?? Infinity);
      return piece;
    }));
    const whole = (frame.torch ?? []).reduce((a, b) => a * b, 1);
    the("grid-note").textContent = !grid ? "" : whole > grid.count
      ? `${whole.toLocaleString("en")} elements in ${frame.tall} x ${frame.wide} cells.` : "Every element has a cell of its own.";
    sayCell(grid, frame);
  };

  // --- moving ---
  const go = (to) => { at = Math.min(last, Math.max(0, to)); cell = -1; show(); };
  const stop = () => { clearInterval(timer); timer = 0; the("play").textContent = "Play"; };
  const step = (by) => { moved = true; stop(); go(at + by); };
  const play = () => {
    if (timer) { stop(); return; }
    if (at === last || !moved) go(0);
    moved = true;
    the("play").textContent = "Pause";
    timer = setInterval(() => {
      if (at >= last) { stop(); return; }
      go(at + 1);
      if (at === first || at === last) stop(); // it waits where the two part; from there one goes on by hand
    }, Math.max(60, Math.min(350, 20000 / frames.length)));
  };
  the("play").addEventListener("click", play);
  the("back").addEventListener("click", () => step(-1));
  the("on").addEventListener("click", () => step(1));
  the("jump").hidden = first < 0;
  the("jump").addEventListener("click", () => { moved = true; stop(); go(first); });
  seek.addEventListener("input", () => { moved = true; stop(); go(Number(seek.value)); });
  for (const button of ways) button.addEventListener("click", () => {
    way = button.dataset.way;
    for (const other of ways) other.setAttribute("aria-pressed", String(other === button));
    cell = -1;
    show();
  });
  const pick = (event) => {
    const area = strip.getBoundingClientRect();
    return Math.floor(((event.clientX - area.left - GUTTER) / (area.width - GUTTER)) * frames.length);
  };
  strip.addEventListener("pointerdown", (event) => { moved = true; stop(); go(pick(event)); });
  strip.addEventListener("pointermove", (event) => {
    strip.title = frames[Math.min(last, Math.max(0, pick(event)))].title;
    if (event.buttons) go(pick(event));
  });
  for (const canvas of maps) {
    const point = (event) => {
      const area = canvas.getBoundingClientRect(), frame = frames[at];
      if (!gridOf(at)) return;
      const column = Math.floor(((event.clientX - area.left) / area.width) * frame.wide);
      const row = Math.floor(((event.clientY - area.top) / area.height) * frame.tall);
      cell = Math.min(frame.tall - 1, Math.max(0, row)) * frame.wide + Math.min(frame.wide - 1, Math.max(0, column));
      show();
    };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("keydown", (event) => {
      const frame = frames[at], by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -frame.wide, ArrowDown: frame.wide }[event.key];
      if (by === undefined || !gridOf(at)) return;
      event.preventDefault();
      event.stopPropagation();
      if (cell + by >= 0 && cell + by < frame.tall * frame.wide) cell += by;
      show();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, summary, figure[data-points]")) return;
    if (event.key === " " && event.target.closest("button")) return;
    const act = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), " ": play, Home: () => { moved = true; stop(); go(0); },
      End: () => { moved = true; stop(); go(last); }, p: () => { if (first >= 0) { moved = true; stop(); go(first); } } }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  const redraw = () => { readColours(); show(); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new ResizeObserver(redraw).observe(the("player"));
  redraw();
})();
