// The page asks for a frame when it has the last one and has drawn the one before: nothing can pile up.
"use strict";

const KEYS = {  // by position on the keyboard: what each means
  ArrowUp: "forward", KeyW: "forward", ArrowDown: "backward", KeyS: "backward",
  ArrowLeft: "look_left", KeyQ: "look_left", ArrowRight: "look_right", KeyE: "look_right",
  KeyA: "strafe_left", KeyD: "strafe_right", KeyF: "attack", Enter: "attack",
};
const OTHER_NAMES = {  // what worlds may call it instead
  forward: ["up"], backward: ["down"], look_left: ["left", "strafe_left"], look_right: ["right", "strafe_right"],
  strafe_left: ["left", "look_left"], strafe_right: ["right", "look_right"], attack: ["fire"], noop: ["stay", "wait"],
};
const KEY_NAMES = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", Enter: "Enter" };
const ORDER = [  // of the buttons, in rows of three
  "forward_look_left", "forward", "forward_look_right", "look_left", "noop", "look_right", "strafe_left", "backward",
  "strafe_right",
];
const CURVE_POINTS = 200;
const RETRIES = 3;  // of a start while all places are taken: a page that was just closed frees its place

const at = (id) => document.getElementById(id);
const player = {  // everything that changes
  socket: null, session: null, waiting: [], paused: false, ended: false, starts: 0, step: 0, fps: 0, delay: 0, best: {},
  pressed: new Set(), tapped: new Set(), times: [], due: 0, keyTime: 0, curves: { surprise: [], psnr: [] },
  picture: null, timer: 0, retries: 0, drawing: 0, drawn: Promise.resolve(),
};
window.player = player;

// --- requests and answers ---------------------------------------------------------------------------------------

function connect() {
  const socket = new WebSocket(`${location.origin.replace("http", "ws")}/play${location.search}`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = (event) => receive(event.data);
  socket.onopen = () => start();
  socket.onclose = (event) => {
    if (socket !== player.socket) return;
    stop();
    for (const request of player.waiting.splice(0)) if (request.failed) request.failed();
    if (event.code === 1013 && player.retries++ < RETRIES) setTimeout(connect, 1000);
    else if (at("message").hidden) say("The connection is closed. A new start opens another, unless the program has ended.");
  };
  player.socket = socket;
}

function ask(request, answer, extra = {}) {
  if (player.socket.readyState !== WebSocket.OPEN) {
    if (extra.failed) extra.failed();
    return;
  }
  player.waiting.push({ answer, asked: performance.now(), ...extra });
  player.socket.send(JSON.stringify(request));
}

function receive(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const request = player.waiting.shift();
  if (header.status !== 200) {
    stop();
    say(header.error);
    if (request && request.failed) request.failed();
    return;
  }
  let offset = 4 + length;
  const pictures = header.pictures.map((size) => {
    const part = new Blob([new Uint8Array(buffer, offset, size)], { type: "image/png" });
    offset += size;
    return createImageBitmap(part);
  });
  if (request.received) request.received(header, request);
  player.drawing += 1;
  const decoded = Promise.all(pictures);
  player.drawn = player.drawn.then(() => decoded).then((images) => {  // one after the other
    player.drawing -= 1;
    request.answer(header, images, request);
  }).catch((error) => say(`The page failed: ${error.message}`));
}

function say(text) {
  at("message").textContent = text;
  at("message").hidden = !text;
}

// --- starting, stepping, stopping -------------------------------------------------------------------------------

function start() {
  if (!player.socket || player.socket.readyState > WebSocket.OPEN) return connect();
  if (player.socket.readyState !== WebSocket.OPEN) return undefined;
  clearTimeout(player.timer);
  player.starts += 1;
  const request = { do: "start" };
  if (player.session) {
    Object.assign(request, {
      world: at("world").value, seed: Number(at("seed").value), temperature: Number(at("temperature").value),
      clip: at("clip").value === "" ? null : Number(at("clip").value), picture: player.picture,
    });
  }
  at("note").textContent = "loading …";
  ask(request, (header, images, { number }) => number === player.starts && begin(header, images), { number: player.starts, failed: () => { at("note").textContent = ""; } });
  return undefined;
}

function begin(header, images) {
  say("");
  player.retries = 0;
  describe(header.session);
  player.ended = false;
  player.times = [];
  player.keyTime = 0;
  player.curves = { surprise: [], psnr: [] };
  at("end").hidden = true;
  show(header, images);
  pause(false);
}

function newStart(seedStep) {
  at("seed").value = Number(at("seed").value) + seedStep;
  start();
}

function schedule() {
  clearTimeout(player.timer);
  if (player.paused || player.ended || document.hidden) return;
  const now = performance.now();
  const interval = at("pace").value === "fast" ? 0 : 1000 / player.session.rate;
  player.due = Math.max(player.due + interval, now);
  if (player.due <= now) step();
  else player.timer = setTimeout(step, player.due - now);
}

function step() {
  if (player.waiting.length || player.paused || player.ended) return;
  const action = chosenAction();
  player.tapped.clear();
  if (action === null) {  // a world without a noop waits for a key
    player.timer = setTimeout(step, 20);
    return;
  }
  const { keyTime, starts } = player;
  player.keyTime = 0;
  ask({ do: "step", action }, (header, images, request) => {
    if (starts !== player.starts) return;
    show(header, images);
    player.delay = performance.now() - (keyTime || request.asked);
    if (keyTime || at("delay").textContent === "–") at("delay").textContent = `${player.delay.toFixed(0)} ms`;
    if (header.end) finish(header);
    else if (!request.ahead) schedule();
  }, {
    received: (header, request) => {  // the next one is made while this one is drawn
      request.ahead = starts === player.starts && !header.end && !player.drawing;
      if (request.ahead) schedule();
    },
  });
}

function stop() {
  clearTimeout(player.timer);
  player.paused = true;
  at("pause").setAttribute("aria-pressed", "true");
}

function pause(paused) {
  if (!player.session) return;
  player.paused = paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  clearTimeout(player.timer);
  player.due = 0;
  player.times = [];
  if (!paused && !player.waiting.length) schedule();
}

function finish(header) {
  player.ended = true;
  const { world } = player.session;
  player.best[world] = Math.max(player.best[world] || 0, header.step);
  at("best").textContent = player.best[world];
  const how = header.end === "terminated" ? "The episode ended" : "Time is up";
  at("end-text").textContent = `${how} after ${header.step} step${header.step === 1 ? "" : "s"}.`;
  at("end").hidden = false;
}

// --- what one sees ----------------------------------------------------------------------------------------------

function show(header, images) {
  draw(at("dream"), images[0]);
  if (images[1]) draw(at("truth"), images[1]);
  const now = performance.now();
  player.times = player.times.filter((time) => now - time < 2000).concat(now);
  const { times } = player;
  player.fps = times.length > 1 ? (1000 * (times.length - 1)) / (now - times[0]) : 0;
  player.step = header.step;
  at("step").textContent = header.step;
  at("fps").textContent = player.fps ? player.fps.toFixed(1) : "–";
  at("reward").textContent = header.reward.toFixed(Math.abs(header.reward) < 100 ? 1 : 0);
  at("chance").textContent = header.termination_prob === null ? "–" : percent(header.termination_prob);
  at("note").textContent = header.note;
  for (const button of at("actions").children) button.classList.toggle("chosen", button.id === `action-${header.chosen}`);
  for (const [name, unit] of [["surprise", "bits per code"], ["psnr", "dB"]]) {
    if (header[name] === null) continue;
    player.curves[name] = player.curves[name].concat(header[name]).slice(-CURVE_POINTS);
    at(name).textContent = `${header[name].toFixed(name === "psnr" ? 1 : 2)} ${unit}`;
    drawCurve(at(`curve-${name}`), player.curves[name], `--${name}`);
  }
}

function percent(fraction) {
  return fraction < 0.0005 ? "< 0.1 %" : `${(100 * fraction).toFixed(1)} %`;
}

function draw(canvas, image) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
    canvas.style.aspectRatio = `${image.width} / ${image.height}`;
  }
  canvas.getContext("2d").drawImage(image, 0, 0);
  image.close();
}

function drawCurve(canvas, values, color) {
  const ratio = window.devicePixelRatio, { clientWidth: width, clientHeight: height } = canvas;
  const styles = getComputedStyle(document.documentElement);
  if (canvas.width !== Math.round(width * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const low = Math.floor(Math.min(...values)), high = Math.max(Math.ceil(Math.max(...values)), low + 1);
  const x = (index) => 28 + (index * (width - 36)) / (CURVE_POINTS - 1);
  const y = (value) => height - 10 - ((value - low) * (height - 20)) / (high - low);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = styles.getPropertyValue("--soft");
  context.strokeStyle = styles.getPropertyValue("--line");
  for (const value of [low, high]) {
    context.fillText(value, 6, y(value) + 4);
    context.beginPath();
    context.moveTo(28, y(value));
    context.lineTo(width - 8, y(value));
    context.stroke();
  }
  context.strokeStyle = styles.getPropertyValue(color);
  context.lineWidth = 2;
  context.beginPath();
  values.forEach((value, index) => context.lineTo(x(index), y(value)));
  context.stroke();
}

// --- what there is to choose ------------------------------------------------------------------------------------

function describe(session) {
  const known = player.session;
  player.session = session;
  if (!known) {
    at("seed").value = session.seed;
    at("temperature").value = session.temperature;
    at("world").replaceChildren(...Object.keys(session.worlds).map((name) => new Option(name, name)));
  }
  document.body.classList.toggle("beside", session.mode === "beside");
  at("agent-line").hidden = !session.agent;
  at("agent-name").textContent = session.agent;
  at("truth-figure").hidden = at("curves").hidden = session.mode !== "beside";
  at("dream-label").hidden = session.mode === "record";
  at("settings").classList.toggle("real", session.mode === "record");
  for (const id of ["seed", "temperature"]) at(id).disabled = session.mode === "record";
  if (known && known.world === session.world) return;
  at("world").value = session.world;
  at("world").disabled = Object.keys(session.worlds).length < 2;
  at("about").textContent = session.worlds[session.world];
  at("best").textContent = player.best[session.world] || "–";
  at("pace").options[0].textContent = `real time, ${+session.rate.toFixed(2)} frames/s`;
  const clips = [...Array(session.clips).keys()].map((clip) => new Option(`clip ${clip}`, clip));
  at("clip").replaceChildren(new Option("any clip", ""), ...clips);
  for (const element of document.querySelectorAll(".clip")) element.hidden = !session.clips;
  for (const element of document.querySelectorAll(".picture")) element.hidden = !session.takes_pictures;
  player.picture = null;
  at("picture").value = "";
  makeButtons(session.actions);
}

function makeButtons(actions) {
  const place = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
  const buttons = [...actions].sort((a, b) => place(a) - place(b)).map((name) => {
    const button = document.createElement("button");
    const label = name.replaceAll("_", " ").replace("forward look", "forward,");
    Object.assign(button, { type: "button", id: `action-${name}`, textContent: label });
    const keys = keysOf(name, actions);
    if (keys) button.append(Object.assign(document.createElement("kbd"), { textContent: keys }));
    const release = () => player.pressed.delete(`button ${name}`) && showHeld();
    button.addEventListener("pointerdown", (event) => { event.preventDefault(); press(`button ${name}`); });
    for (const type of ["pointerup", "pointercancel", "pointerleave"]) button.addEventListener(type, release);
    button.addEventListener("click", (event) => event.detail === 0 && tap(`button ${name}`));  // from the keyboard
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    return button;
  });
  at("actions").replaceChildren(...buttons);
  at("keys").replaceChildren(...[...actions].map((name) => {
    const row = document.createElement("tr");
    for (const text of [keysOf(name, actions) || "button", name]) row.insertCell().textContent = text;
    return row;
  }));
}

function keysOf(name, actions) {
  if (name.startsWith("forward_look")) return `↑ ${name.endsWith("left") ? "←" : "→"}`;
  const keys = Object.keys(KEYS).filter((code) => existing(KEYS[code], actions) === name);
  const digit = actions.indexOf(name) < 9 && !keys.length ? [String(actions.indexOf(name) + 1)] : [];
  return keys.map((code) => KEY_NAMES[code] || code.replace("Key", "")).concat(digit).join(" ");
}

// --- what is held -----------------------------------------------------------------------------------------------

const existing = (name, actions) => [name, ...(OTHER_NAMES[name] || [])].find((other) => actions.includes(other)) || null;

function chosenAction() {
  const { actions } = player.session, held = [...player.pressed, ...player.tapped];
  const button = held.find((key) => key.startsWith("button "));
  if (button) return button.slice("button ".length);
  const digit = held.map((code) => (/^Digit[1-9]$/.test(code) ? actions[code.slice(5) - 1] : null)).find(Boolean);
  if (digit) return digit;
  const meant = new Set(held.map((code) => KEYS[code]));
  const turn = meant.has("look_left") === meant.has("look_right") ? "" : meant.has("look_left") ? "look_left" : "look_right";
  const wishes = [meant.has("attack") && "attack", meant.has("forward") && turn && `forward_${turn}`, turn];
  for (const name of ["strafe_left", "strafe_right", "forward", "backward"]) wishes.push(meant.has(name) && name);
  for (const wish of wishes) {
    const action = wish && existing(wish, actions);
    if (action) return action;
  }
  return agentPlays() ? "agent" : existing("noop", actions);
}

const agentPlays = () => Boolean(player.session.agent) && at("agent").checked;

function press(key) {
  if (player.pressed.has(key)) return;
  player.pressed.add(key);
  tap(key);
}

function tap(key) {
  player.tapped.add(key);  // so that a short press counts for one frame
  if (!player.keyTime) player.keyTime = performance.now();
  showHeld();
}

function releaseAll() {
  player.pressed.clear();
  player.tapped.clear();
  player.keyTime = 0;
  showHeld();
}

function showHeld() {
  if (!player.session) return;
  const action = player.pressed.size ? chosenAction() : null;
  for (const button of at("actions").children) button.classList.toggle("held", button.id === `action-${action}`);
}

const COMMANDS = {
  Space: () => pause(!player.paused), KeyR: () => newStart(1), KeyT: () => newStart(0),
  KeyG: () => { at("agent").checked = !at("agent").checked; },
};

addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT"].includes(event.target.tagName);
  const pushing = ["BUTTON", "SUMMARY", "A"].includes(event.target.tagName) && ["Space", "Enter"].includes(event.code);
  if (!player.session || typing || pushing || event.ctrlKey || event.metaKey || event.altKey) return;
  const isAction = event.code in KEYS || /^Digit[1-9]$/.test(event.code);
  if (!isAction && !(event.code in COMMANDS)) return;
  event.preventDefault();
  if (event.repeat) return;
  if (isAction) press(event.code);
  else COMMANDS[event.code]();
});
addEventListener("keyup", (event) => { player.pressed.delete(event.code); showHeld(); });
addEventListener("blur", releaseAll);
document.addEventListener("visibilitychange", () => {
  releaseAll();
  if (!document.hidden && player.session) pause(player.paused);
});

// --- buttons and settings ---------------------------------------------------------------------------------------

function saveFilm(kind) {
  at("note").textContent = "saving …";
  const buttons = [...at("films").children];
  const enable = (enabled) => { for (const button of buttons) button.disabled = !enabled; };
  const resume = !player.paused;
  enable(false);
  const done = () => { enable(true); at("note").textContent = ""; };
  ask({ do: "film", kind }, (header) => {
    done();
    const link = at("film-link"), size = header.bytes < 1e6 ? `${(header.bytes / 1e3).toFixed(0)} kB` : `${(header.bytes / 1e6).toFixed(1)} MB`;
    link.href = header.film + location.search;
    link.download = header.file;
    link.textContent = `${header.file}, ${size}`;
    at("film").hidden = false;
    link.click();
    if (resume) schedule();
  }, { failed: done });
}

async function takePicture(file) {
  const { width, height } = at("dream");
  const image = await createImageBitmap(file);
  const side = Math.min(image.width, image.height);  // of the last square: a strip ends at the right
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").drawImage(image, image.width - side, image.height - side, side, side, 0, 0, width, height);
  player.picture = canvas.toDataURL("image/png").split(",")[1];
  start();
}

for (const kind of ["gif", "mp4", "episode"]) at(`save-${kind}`).onclick = () => saveFilm(kind);
at("pause").onclick = () => COMMANDS.Space();
at("new").onclick = () => newStart(1);
at("again").onclick = () => newStart(0);
at("end-new").onclick = () => { newStart(1); at("dream").focus(); };
at("pace").onchange = () => { player.due = 0; player.times = []; at("dream").focus(); };
at("world").onchange = () => { start(); at("dream").focus(); };
at("clip").onchange = () => { player.picture = null; at("picture").value = ""; start(); at("dream").focus(); };
at("seed").onchange = at("temperature").onchange = () => start();
at("settings").onsubmit = (event) => { event.preventDefault(); at("dream").focus(); };
at("picture").onchange = () => at("picture").files[0] && takePicture(at("picture").files[0]).catch((error) => say(`No picture: ${error.message}`));
connect();
