// The side-by-side browser of a report: reads the rows packed in the page, shows them, and takes blind votes.
// Texts of data and models enter the page by textContent only; the page's Content Security Policy forbids the rest.
"use strict";

(async () => {
  const PAGE = 20;
  const at = (id) => document.getElementById(`browser-${id}`);
  const root = document.getElementById("browser");
  const all = (selector) => [...root.querySelectorAll(selector)];

  const unpack = async () => {
    const packed = Uint8Array.from(atob(at("data").textContent.trim()), (character) => character.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return JSON.parse(await new Response(stream).text());
  };

  let data;
  try {
    data = await unpack();
  } catch (error) {
    at("opening").textContent = `This browser cannot unpack the rows (${error.message}): it is older than 2023.`;
    return;
  }
  const { names, rows, ballots } = data;
  const [BEFORE, AFTER] = [0, 1]; // positions in a row's texts and facts; 2 is the reference

  // Words and numbers -------------------------------------------------------------------------------------------------

  const thousands = (number) => number.toLocaleString("en-US");
  const count = (number, one) => `${thousands(number)} ${one}${number === 1 ? "" : "s"}`;
  const signed = (number) => (number < 0 ? "−" : number > 0 ? "+" : "") + Math.abs(number).toFixed(2);
  const percent = (share) => `${(100 * share).toFixed(share >= 0.1 && share <= 0.9 ? 0 : 1).replace(".0", "")}\u00a0%`;

  // The 95 % interval of rlhf.metrics.share, after Wilson 1927.
  const wilson = (hits, of) => {
    const z = 1.959964;
    const rate = hits / of;
    const centre = (rate + (z * z) / (2 * of)) / (1 + (z * z) / of);
    const half = (z / (1 + (z * z) / of)) * Math.sqrt((rate * (1 - rate)) / of + (z * z) / (4 * of * of));
    return [Math.max(0, Math.min(rate, centre - half)), Math.min(1, Math.max(rate, centre + half))];
  };

  // Parts of the page -------------------------------------------------------------------------------------------------

  const fromTemplate = (id) => at(id).content.cloneNode(true).firstElementChild;

  // `runs`: lengths of shared and own pieces in turn, as rlhf.report.browser.word_diff gives them.
  const fill = (element, text, runs, kind) => {
    element.classList.toggle("muted", !text.trim());
    element.replaceChildren();
    let start = 0;
    (runs || []).forEach((length, number) => {
      const piece = text.slice(start, (start += length));
      if (number % 2) {
        const mark = document.createElement("mark");
        mark.className = kind;
        mark.textContent = piece;
        element.append(mark);
      } else {
        element.append(piece);
      }
    });
    element.append(text.trim() ? text.slice(start) : "(empty)");
  };

  const column = (title, text, facts, runs, kind) => {
    const made = fromTemplate("column");
    made.querySelector("h4").textContent = title;
    fill(made.querySelector(".text"), text, runs, kind);
    made.querySelector(".facts").textContent = facts;
    return made;
  };

  const pill = (text, tone) => {
    const made = document.createElement("p");
    made.className = `outcome ${tone}`;
    made.textContent = text;
    return made;
  };

  const TONES = { win: "good", loss: "bad" };
  const outcomeOf = (row) => {
    const words = { win: `${names[AFTER]} wins`, loss: `${names[BEFORE]} wins`, tie: "tie" };
    return (words[row.outcome] || "not judged") + (row.margin === null ? "" : `, ${signed(row.margin)}`);
  };

  // Reading -----------------------------------------------------------------------------------------------------------

  const trimmed = (row) => row.texts.map((text) => (text || "").trim());
  const OUTCOMES = { win: "win", loss: "loss", tie: "tie", none: null };
  const FILTERS = {
    cut: (row) => row.cut,
    empty: (row) => !trimmed(row)[BEFORE] || !trimmed(row)[AFTER],
    same: (row) => trimmed(row)[BEFORE] === trimmed(row)[AFTER],
    differs: (row) => trimmed(row)[2] && trimmed(row)[AFTER] !== trimmed(row)[2],
  };

  const known = rows.map((row) => row.margin).filter((margin) => margin !== null).sort((a, b) => a - b);
  const middle = known.length ? (known[(known.length - 1) >> 1] + known[known.length >> 1]) / 2 : 0;

  // What a way of sorting, by its value in the <select>, puts rows in rising order of; null goes last.
  const keyOf = (sort) => {
    if (sort === "order") return () => 0;
    if (sort === "typical") return (row) => (row.margin === null ? null : Math.abs(row.margin - middle));
    const [sign, what] = [sort[0] === "-" ? -1 : 1, sort.slice(1)];
    const value = what === "margin" ? (row) => row.margin : (row) => row.scores[what];
    return (row) => (value(row) === null ? null : sign * value(row));
  };

  let found = [];
  let shown = 0;
  let searchable; // made at the first search

  const find = () => {
    const phrase = at("search").value.trim().toLowerCase();
    const pressed = all("[data-filter][aria-pressed=true]").map((button) => button.dataset.filter);
    const outcomes = pressed.filter((key) => key in OUTCOMES).map((key) => OUTCOMES[key]);
    const others = pressed.filter((key) => key in FILTERS).map((key) => FILTERS[key]);
    searchable ||= phrase && rows.map((row) => [row.id, row.prompt, ...row.texts].join("\n").toLowerCase());
    const key = keyOf(at("sort").value);
    found = rows
      .map((row, number) => ({ row, number, key: key(row) ?? Infinity }))
      .filter(({ row, number }) => !phrase || searchable[number].includes(phrase))
      .filter(({ row }) => !outcomes.length || outcomes.includes(row.outcome))
      .filter(({ row }) => others.every((fits) => fits(row)))
      .sort((a, b) => (a.key === b.key ? a.number - b.number : a.key - b.key));
    shown = 0;
    at("list").replaceChildren();
    showMore();
  };

  const card = ({ row, number }) => {
    const made = fromTemplate("row");
    const diff = at("diff").checked ? row.diff : [];
    made.querySelector(".title").textContent = `Prompt ${thousands(number + 1)}`;
    made.querySelector(".id").textContent = row.id;
    made.querySelector(".outcomes").append(pill(outcomeOf(row), TONES[row.outcome] || ""));
    const vote = votes().get(row.id);
    if (vote) made.querySelector(".outcomes").append(pill(`your vote: ${vote === "tie" ? vote : nameOf(vote)}`, ""));
    fill(made.querySelector("details .text"), row.prompt);
    const columns = [BEFORE, AFTER, 2].filter((side) => row.texts[side] !== null);
    const kinds = ["old", "new"];
    made
      .querySelector(".columns")
      .append(...columns.map((side) => column(names[side], row.texts[side], row.facts[side], diff[side], kinds[side])));
    return made;
  };

  const showMore = () => {
    const cards = found.slice(shown, shown + PAGE).map(card);
    at("list").append(...cards);
    shown += cards.length;
    const left = found.length - shown;
    at("more").hidden = !left;
    at("more").textContent = `Show ${thousands(Math.min(left, PAGE))} more`;
    const of = found.length === rows.length ? count(rows.length, "row") : `${thousands(found.length)} of ${count(rows.length, "row")}`;
    const marked = at("diff").checked
      ? ` Marked: words of ${names[BEFORE]} that ${names[AFTER]} lacks (dotted), and the other way round (solid).`
      : "";
    at("status").textContent = (found.length ? `${of}, ${thousands(shown)} shown.` : `No row of ${thousands(rows.length)} fits.`) + marked;
    return cards[0];
  };

  // Votes -------------------------------------------------------------------------------------------------------------

  // A log of {id, vote}, vote being "before", "after" or "tie": the last of an id counts, and undo takes the last off.
  const KEY = `rlhf votes ${data.digest}`;
  const ids = new Set(ballots.map((number) => rows[number].id));
  const store = (() => {
    try {
      window.localStorage.setItem("rlhf probe", "1");
      window.localStorage.removeItem("rlhf probe");
      return window.localStorage;
    } catch {
      return null; // a sandboxed frame, or a browser told to keep nothing
    }
  })();
  let log = [];
  let kept = Boolean(store);

  const load = () => {
    try {
      const saved = JSON.parse(store.getItem(KEY));
      log = saved.filter(({ id, vote }) => ids.has(id) && ["before", "after", "tie"].includes(vote));
    } catch {
      log = []; // none yet, or not ours
    }
  };
  const save = () => {
    try {
      store?.setItem(KEY, JSON.stringify(log));
    } catch {
      kept = false; // full
    }
    showLimits();
    at("exported").textContent = ""; // that was of the votes before
    at("handed").hidden = true;
  };
  const votes = () => new Map(log.map(({ id, vote }) => [id, vote]));
  const nameOf = (vote) => names[vote === "after" ? AFTER : BEFORE];

  // Which of the two models stands at A and at B.
  const sides = (row) => (row.afterIsA ? ["after", "before"] : ["before", "after"]);
  const letter = (row, vote) => (vote === "tie" ? "tie" : "AB"[sides(row).indexOf(vote)]);

  let place = 0; // in `ballots`
  let revealed = false;
  const current = () => rows[ballots[place]];

  const showBallot = () => {
    const given = votes();
    const row = current();
    const vote = given.get(row.id);
    fill(at("prompt"), row.prompt);
    at("sides").replaceChildren(
      ...sides(row).map((who, number) => {
        const model = who === "after" ? AFTER : BEFORE;
        const title = revealed ? `${"AB"[number]}: ${names[model]}` : "AB"[number];
        return column(title, row.texts[model], revealed ? row.facts[model] : "");
      }),
    );
    all("[data-vote]").forEach((button) => {
      button.setAttribute("aria-pressed", String(Boolean(vote) && button.dataset.vote === letter(row, vote)));
    });
    // Not `disabled`, which would take the focus from a button at the last row.
    const without = { previous: place === 0, next: place === ballots.length - 1, undo: !log.length };
    Object.entries(without).forEach(([id, nothing]) => at(id).setAttribute("aria-disabled", String(nothing)));
    at("bar").max = ballots.length;
    at("bar").value = given.size;
    const done = given.size === ballots.length ? "all voted on" : `${thousands(given.size)} voted on`;
    at("progress").textContent = `Row ${thousands(place + 1)} of ${thousands(ballots.length)}, ${done}`;
    at("reveal").setAttribute("aria-pressed", String(revealed));
    at("result").hidden = !revealed;
    at("result").textContent = revealed ? resultOf(given) : "";
  };

  const resultOf = (given) => {
    const voted = rows.filter((row) => given.has(row.id));
    const decided = voted.filter((row) => given.get(row.id) !== "tie");
    const ties = voted.length - decided.length;
    const apart = ties ? ` ${count(ties, "tie")} apart.` : "";
    if (!decided.length) return `No vote decides yet, so there is no win rate.${apart}`;
    const wins = decided.filter((row) => given.get(row.id) === "after").length;
    const [low, high] = wilson(wins, decided.length);
    const judged = decided.filter((row) => row.outcome === "win" || row.outcome === "loss");
    const agreed = judged.filter((row) => (row.outcome === "win") === (given.get(row.id) === "after")).length;
    const agreement = judged.length
      ? ` This page's judge says the same in ${thousands(agreed)} of the ${count(judged.length, "row")} that it and you decided.`
      : "";
    return (
      `${names[AFTER]} won ${thousands(wins)} of ${count(decided.length, "decided vote")}: ` +
      `${percent(wins / decided.length)}, 95\u00a0% interval ${percent(low)} to ${percent(high)}.${apart}${agreement}`
    );
  };

  const go = (step) => {
    place = Math.max(0, Math.min(ballots.length - 1, place + step));
    showBallot();
    // The next row begins at its beginning, however long the last one was.
    at("prompt").parentElement.scrollTop = 0;
    if (at("ballot").getBoundingClientRect().top < 0) at("ballot").scrollIntoView();
  };

  // From `place` on to the next row without a vote, round the end; stays where every row has one.
  const goToOpen = (given) => {
    const order = ballots.map((_, number) => (place + number) % ballots.length);
    const open = order.find((number) => !given.has(rows[ballots[number]].id));
    go((open ?? place) - place);
  };

  const cast = (choice) => {
    const row = current();
    log.push({ id: row.id, vote: choice === "tie" ? "tie" : sides(row)["AB".indexOf(choice)] });
    save();
    goToOpen(votes());
  };

  const undo = () => {
    if (!log.length) return;
    const { id } = log.pop();
    save();
    place = ballots.findIndex((number) => rows[number].id === id);
    go(0);
  };

  // Export ------------------------------------------------------------------------------------------------------------

  // Characters that do not show or that reorder others stay escapes, so that the text can be looked at before it is used.
  const line = (value) =>
    JSON.stringify(value).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (character) =>
      [...Array(character.length).keys()]
        .map((unit) => `\\u${character.charCodeAt(unit).toString(16).padStart(4, "0")}`)
        .join(""),
    );

  // What TRL and this pipeline's preference_dataset take: of a conversation, replies are messages too.
  const preference = (row, vote) => {
    const exact = row.exact || row.texts;
    const [chosen, rejected] = vote === "after" ? [exact[AFTER], exact[BEFORE]] : [exact[BEFORE], exact[AFTER]];
    const prompt = row.original ?? row.prompt;
    const reply = (content) => (Array.isArray(prompt) ? [{ role: "assistant", content }] : content);
    return { prompt, chosen: reply(chosen), rejected: reply(rejected) };
  };

  const exported = (what) => {
    const given = votes();
    const voted = ballots.map((number) => rows[number]).filter((row) => given.has(row.id));
    if (what === "votes") {
      const lines = voted.map((row) => ({ id: row.id, vote: given.get(row.id), side: letter(row, "after") }));
      return { lines, said: `${count(lines.length, "vote")}; side is where ${names[AFTER]} stood.` };
    }
    const decided = voted.filter((row) => given.get(row.id) !== "tie");
    // An empty completion teaches a reward model nothing, and data validation would put the row aside.
    const usable = decided.filter((row) => !FILTERS.empty(row));
    const [ties, empty] = [voted.length - decided.length, decided.length - usable.length];
    const without = [ties ? count(ties, "tie") : "", empty ? `${count(empty, "row")} with an empty completion` : ""];
    const left = without.filter(Boolean).join(" and ");
    const said = `${count(usable.length, "preference")}${left ? `, without ${left}` : ""}.`;
    return { lines: usable.map((row) => preference(row, given.get(row.id))), said };
  };

  // Scripts cannot ask a frame whether it may download. One of an opaque origin, which keeps nothing either, is taken
  // for one that may not; the text is there to copy in any frame.
  const framed = window.parent !== window;
  const mayDownload = !framed || Boolean(store);

  const exportAs = (what) => {
    const { lines, said } = exported(what);
    const text = lines.map((value) => `${line(value)}\n`).join("");
    const name = `${what}-${data.digest.replace(/[^\w-]/g, "").slice(0, 12)}.jsonl`;
    if (mayDownload) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    }
    at("handed").hidden = !framed;
    at("text").value = framed ? text : "";
    at("text-label").textContent = `To be copied into a file, ${name}`;
    at("exported").textContent = (mayDownload ? `${name}: ` : "Below: ") + said;
  };

  const showLimits = () => {
    if (!store && framed) {
      at("limits").textContent =
        "The frame that this page stands in lets it neither keep votes nor download files; that of the Kubeflow " +
        "Pipelines UI is such a one. Votes are lost when the frame is closed or loaded again: copy them out before. " +
        "Opened as a file in a tab of its own, the page does both.";
    } else {
      at("limits").textContent = kept
        ? "Votes stay in this browser, on this machine."
        : "This browser keeps nothing for this page: votes are lost when it is closed or loaded again.";
    }
  };

  // Events ------------------------------------------------------------------------------------------------------------

  const setMode = (mode) => {
    all("[data-mode]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.mode === mode)));
    all("[data-view]").forEach((view) => (view.hidden = view.dataset.view !== mode));
    if (mode === "read") return find();
    if (!ballots.length) return undefined;
    goToOpen(votes());
    at("ballot").focus({ preventScroll: true });
    if (at("ballot").getBoundingClientRect().bottom > window.innerHeight) at("ballot").scrollIntoView();
    return undefined;
  };

  const KEYS = {
    ...{ 1: "A", a: "A", 2: "B", b: "B", 3: "tie", t: "tie" },
    ...{ ArrowLeft: () => go(-1), ArrowRight: () => go(1), u: undo },
  };

  // A key counts while the ballot is in sight and has the focus, or nothing has: nobody votes by typing elsewhere.
  const onKey = (event) => {
    const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const { top, bottom, height } = at("ballot").getBoundingClientRect();
    const focus = document.activeElement;
    if (!height || bottom < 0 || top > window.innerHeight) return;
    if (focus && focus !== document.body && !at("ballot").contains(focus)) return;
    event.preventDefault();
    if (typeof action === "string") cast(action);
    else action();
  };

  const toggle = (button) => button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  const onClick = (button, action) => button.addEventListener("click", () => action(button));
  let typing;

  all("[data-mode]").forEach((button) => onClick(button, () => setMode(button.dataset.mode)));
  all("[data-filter]").forEach((button) => onClick(button, () => (toggle(button), find())));
  all("[data-vote]").forEach((button) => onClick(button, () => cast(button.dataset.vote)));
  all("[data-export]").forEach((button) => onClick(button, () => exportAs(button.dataset.export)));
  at("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(find, 150);
  });
  at("sort").addEventListener("change", find);
  at("diff").addEventListener("change", () => {
    const before = shown;
    find();
    while (shown < before) showMore();
  });
  onClick(at("more"), () => showMore()?.querySelector("h3").focus({ preventScroll: true }));
  onClick(at("previous"), () => go(-1));
  onClick(at("next"), () => go(1));
  onClick(at("undo"), undo);
  onClick(at("reveal"), () => ((revealed = !revealed), showBallot()));
  onClick(at("select"), () => (at("text").focus(), at("text").select()));
  document.addEventListener("keydown", onKey);

  // Start -------------------------------------------------------------------------------------------------------------

  load();
  const leftOut = rows.length - ballots.length;
  at("how").textContent =
    "Rows come in random order, each model on a random side, and what the judge said is hidden. " +
    (leftOut ? `${count(leftOut, "row")} in which both wrote the same ${leftOut === 1 ? "is" : "are"} left out.` : "");
  at("ballot").hidden = !ballots.length;
  at("opening").hidden = true;
  root.querySelector(".modes").hidden = false;
  showLimits();
  setMode("read");
  root.dataset.ready = "";
})();
