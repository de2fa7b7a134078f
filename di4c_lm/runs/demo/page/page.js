// The page's script: asks for samples, takes a line of JSON for each step, and shows any step of all models beside each other.

const $ = (id) => document.getElementById(id);
const form = $("request");
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
let facts, columns = [], shown = 0, playing = false, asked = null, total = 1, timer = 0;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function complain(line) {
  $("error").textContent = line;
  $("error").hidden = !line;
}

// What there is to choose from.

function begin() {
  const classes = Object.values(facts.models).some((model) => model.classes > 0);
  const isText = facts.kind === "text";
  document.querySelectorAll(".of-text").forEach((one) => { one.hidden = !isText; });
  document.querySelectorAll(".of-classes").forEach((one) => { one.hidden = !classes; });
  for (const name of Object.keys(facts.models)) {
    const box = element("input", { type: "checkbox", name: "models", value: name, checked: true });
    $("models").append(element("label", {}, box, ` ${name}`));
  }
  form.sampler.append(...Object.keys(facts.samplers).map((name) => element("option", { value: name, textContent: name })));
  $("grids").append(...facts.grids.map((name) => element("option", { value: name })));
  for (const [key, value] of Object.entries(facts.begin)) {
    if (form.elements[key]) form.elements[key].value = value === "[]" ? "" : value;
  }
  describeSampler(facts.begin);
  $("go").disabled = false;
}

function describeSampler(values = {}) {
  const { help, settings } = facts.samplers[form.sampler.value];
  $("sampler-help").textContent = help;
  $("sampler-settings").replaceChildren(...Object.entries(settings).map(([key, one]) => {
    const input = element("input", { name: `sampler.${key}`, value: values[`sampler.${key}`] ?? one.value, title: one.help });
    return element("label", { title: one.help }, `${key} `, input);
  }));
  $("more").hidden = !Object.keys(settings).length;
}

// A request: every value is text, as on the command line.

function request() {
  const plain = { models: [...document.querySelectorAll("[name=models]:checked")].map((one) => one.value) };
  for (const [key, value] of new FormData(form)) {
    const input = form.elements[key];
    const hidden = input instanceof Element && input.closest("[hidden]:not(details)");
    if (key === "models" || key === "colour" || hidden || (value === "" && key !== "prompt")) continue;
    plain[key] = key === "labels" && !value.startsWith("[") ? `[${value}]` : value;
  }
  return plain;
}

async function sample() {
  stop();
  complain("");
  const plain = request();
  if (!plain.models.length) return complain("models must be at least one, got none");
  const mine = asked = new AbortController();
  columns = plain.models.map(column);
  $("columns").replaceChildren(...columns.map((one) => one.box));
  [shown, total, playing] = [0, Number(plain.steps) || 1, !still];
  $("go").disabled = true;
  $("stop").disabled = false;
  $("status").textContent = "Sampling…";
  try {
    const answer = await fetch("sample", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(plain), signal: mine.signal,
    });
    if (!answer.ok) {
      const body = await answer.text();
      throw new Error(body.startsWith("{") ? JSON.parse(body).error : body);
    }
    $("results").hidden = false;
    for await (const event of lines(answer.body)) take(event);
    $("status").textContent = columns.map((one) => `${one.name}: ${one.end || "no samples"}`).join("; ");
  } catch (error) {
    if (error.name !== "AbortError") complain(error instanceof TypeError ? "the demo does not answer: is it still running?" : error.message);
    if (asked === mine) $("status").textContent = error.name === "AbortError" ? "Stopped." : "";
  } finally {
    if (asked === mine) {
      asked = null;
      $("go").disabled = false;
      $("stop").disabled = true;
    }
  }
}

async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const whole = (rest + part.value).split("\n");
    rest = whole.pop();
    yield* whole.map((line) => JSON.parse(line));
  }
}

function stop() {
  if (asked) asked.abort();
}

// What comes back.

function column(name) {
  const about = element("p", { className: "facts" }), body = element("div");
  const box = element("article", {}, element("h2", { textContent: name }), about, body);
  const blank = facts.kind === "text" ? [] : [{ step: 0, masked: null, seconds: 0, picture: null }];
  return { name, box, about, body, frames: blank, end: "" };
}

function take(event) {
  if (event.waiting) {
    $("status").textContent = "Waiting for the samples of another page…";
    return;
  }
  $("status").textContent = `Sampling from ${event.model}…`;
  const one = columns.find((column) => column.name === event.model);
  if (event.error) {
    one.box.append(element("p", { className: "error", textContent: event.error }));
    one.box.lastChild.setAttribute("role", "alert");
  } else if (event.nfe !== undefined) {
    one.end = `${Number(event.nfe.toFixed(2))} network calls a sample (NFE), ${event.seconds.toFixed(2)} s`;
  } else {
    one.frames.push(event);
    total = Math.max(total, event.step);
  }
  $("step").max = Math.max(0, ...columns.map((column) => column.frames.length - 1));
  const last = Number($("step").max);
  if (still || (playing && $("pace").value === "0")) shown = last;
  if (shown >= one.frames.length - 2 || event.step === undefined) show();
  $("step-number").textContent = `${shown} of ${last}`;
  if (playing) play();
}

function show() {
  $("step").value = shown;
  $("step-number").textContent = `${shown} of ${$("step").max}`;
  for (const one of columns) {
    const at = Math.min(shown, one.frames.length - 1);
    const frame = one.frames[at];
    if (!frame) continue;
    const parts = [`step ${frame.step}`];
    if (frame.masked !== null) parts.push(`${frame.masked} masked`);
    parts.push(at === one.frames.length - 1 && one.end ? one.end : `${frame.seconds.toFixed(2)} s`);
    one.about.textContent = parts.join(" · ");
    if (facts.kind === "text") one.body.replaceChildren(...texts(one, at));
    else one.body.replaceChildren(...picture(one, frame));
  }
  describeColours();
}

function picture(one, frame) {
  if (!frame.picture) return [element("p", { className: "help", textContent: "Nothing is known yet." })];
  return [element("img", {
    className: "picture", src: `data:image/png;base64,${frame.picture}`, alt: `Images of ${one.name} after step ${frame.step}`,
  })];
}

function texts(one, at) {
  const found = one.frames[0].changes.map((tokens) => new Array(tokens.length));
  for (const frame of one.frames.slice(0, at + 1)) {
    frame.changes.forEach((changes, text) => {
      for (const [position, ...token] of changes) found[text][position] = token;
    });
  }
  return found.map((tokens, number) => {
    const text = element("div", { className: "text", tabIndex: 0 }, ...tokens.map(token));
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", `Text ${number + 1} of ${one.name}`);
    return text;
  });
}

function token([piece, step, p]) {
  if (piece === null) return element("span", { className: "masked", title: "masked" });
  if (step === 0) return element("span", { className: "given", title: "given", textContent: piece });
  const made = element("span", { className: "token", title: `step ${step}, p = ${p.toPrecision(3)}`, textContent: piece });
  made.style.background = byProbability() ? ofProbability(p) : ofStep(step);
  return made;
}

// Colours, told apart by the colour-blind too: violet to yellow for steps; the less likely a token, the more orange.

const byProbability = () => document.querySelector("[name=colour]:checked").value === "p";
const ofStep = (step) => `hsl(${280 - 230 * (total > 1 ? (step - 1) / (total - 1) : 0)} 70% var(--token))`;
const ofProbability = (p) => `color-mix(in srgb, var(--unlikely) ${(100 * (1 - p)).toFixed(1)}%, transparent)`;

function describeColours() {
  const five = [0, 0.25, 0.5, 0.75, 1];
  $("low").textContent = byProbability() ? "p = 0" : "step 1";
  $("high").textContent = byProbability() ? "1" : `step ${total}`;
  const colours = five.map((share) => (byProbability() ? ofProbability(share) : ofStep(1 + share * (Math.max(total, 2) - 1))));
  $("scale").style.background = `linear-gradient(to right, ${colours.join(", ")})`;
}

// The steps, one after another.

function play() {
  $("play").textContent = playing ? "Pause" : "Play";
  if (timer || !playing) return;
  const pace = Number($("pace").value);
  timer = setTimeout(() => {
    timer = 0;
    const last = Number($("step").max);
    if (playing && shown < last) {
      shown = pace ? shown + 1 : last;
      show();
    }
    if (playing && shown >= last && !asked) playing = false;
    play();
  }, pace || 50);
}

form.addEventListener("submit", (event) => { event.preventDefault(); sample(); });
form.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit(); });
form.sampler.addEventListener("change", () => describeSampler());
$("stop").addEventListener("click", stop);
$("colour").addEventListener("change", show);
$("step").addEventListener("input", () => { playing = false; shown = Number($("step").value); play(); show(); });
$("play").addEventListener("click", () => {
  playing = !playing;
  if (playing && shown >= Number($("step").max) && !asked) shown = 0;
  show();
  play();
});

try {
  facts = await (await fetch("facts")).json();
  begin();
} catch {
  complain("the demo does not answer: is it still running?");
}
