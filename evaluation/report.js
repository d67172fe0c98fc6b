"use strict";
// What the page can do beyond being read: sort tables, filter the gallery, hold a router map, look closer at a picture.
// Everything is in the page already; nothing is fetched, and no text becomes markup.

document.documentElement.classList.remove("plain");

// Tables: a click on a head sorts by it, a second one the other way, a third one restores the order of the page.

function numberIn(text) {
  const found = text.replaceAll(",", "").match(/[-+−]?\d+(\.\d+)?/);
  return found ? Number(found[0].replace("−", "-")) : NaN;
}

function cellText(row, column) {
  const cell = row.cells[column], image = cell.querySelector("[role=img]"), bold = cell.querySelector("b");
  return (image ? image.getAttribute("aria-label") : bold ? bold.textContent : cell.textContent).trim();
}

function compareBy(column, sign, numeric) {
  return (a, b) => {
    const first = cellText(a, column), second = cellText(b, column);
    if (!numeric) return sign * first.localeCompare(second, "en", { numeric: true });
    const x = numberIn(first), y = numberIn(second);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);  // what has no number comes last
    return sign * (x - y);
  };
}

function makeSortable(table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
  heads.forEach((head, column) => {
    const filled = rows.map((row) => cellText(row, column)).filter((text) => text && text !== "–");
    const numeric = filled.length > 0 && filled.every((text) => /^[-+−]?[\d.,]/.test(text));
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
      const order = next === undefined ? "ascending" : next;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (order) head.setAttribute("aria-sort", order);
      const sorted = order ? [...rows].sort(compareBy(column, order === "ascending" ? 1 : -1, numeric)) : rows;
      body.append(...sorted);
    });
  });
}

document.querySelectorAll("table.sortable").forEach(makeSortable);

// Router maps: hover and focus show them by the stylesheet; a tap or Enter keeps one.

function holdMap(event) {
  const frame = event.target.closest("button.frame");
  if (frame) frame.setAttribute("aria-pressed", String(frame.getAttribute("aria-pressed") !== "true"));
}

// The gallery.

const PORTION = 24;
const gallery = document.getElementById("gallery");

if (gallery) {
  const form = gallery.querySelector("form.filters"), list = gallery.querySelector(".shots");
  const shots = [...list.children], count = form.querySelector(".count"), more = gallery.querySelector(".more");
  let wanted = shots, limit = PORTION;

  function isWanted(shot, fields) {
    const about = shot.dataset;
    return (
      (!fields.person.value || about.person.split(" ").includes(fields.person.value)) &&
      (!fields.group || !fields.group.value || about.group === fields.group.value) &&
      (!fields.prompt.value || about.prompt === fields.prompt.value) &&
      (!fields.people.value || about.people === fields.people.value) &&
      (!fields.nobody.checked || "nobody" in about)
    );
  }

  function inOrder(some, order) {
    if (!order) return some;
    const [measure, way] = order.split(" "), sign = way === "up" ? 1 : -1;
    const value = (shot) => (shot.dataset[measure] === "" ? NaN : Number(shot.dataset[measure]));
    return [...some].sort((a, b) => {
      const x = value(a), y = value(b);
      return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) : sign * (x - y);
    });
  }

  function show() {
    const fields = form.elements;
    wanted = inOrder(shots.filter((shot) => isWanted(shot, fields)), fields.order.value);
    const seen = new Set(wanted.slice(0, limit));
    shots.forEach((shot) => { shot.hidden = !seen.has(shot); });
    list.append(...wanted);
    gallery.classList.toggle("alone", !fields.beside.checked);
    gallery.classList.toggle("maps", fields.maps.checked);
    const some = wanted.length === 1 ? "1 picture" : `${wanted.length} pictures`;
    count.textContent = seen.size < wanted.length ? `${seen.size} of ${some} shown` : wanted.length ? `${some} shown` : "No picture is like that.";
    more.hidden = seen.size >= wanted.length;
  }

  const anew = () => { limit = PORTION; show(); };
  form.addEventListener("change", anew);
  form.addEventListener("reset", () => setTimeout(anew));  // the fields are empty only after the event
  form.addEventListener("submit", (event) => event.preventDefault());
  more.querySelector("button").addEventListener("click", () => {
    const first = wanted[limit];
    limit += PORTION;
    show();
    first.querySelector("button").focus({ preventScroll: true });
  });
  list.addEventListener("click", holdMap);

  // A closer look: one picture in a dialog, and the ones before and after it in the order that is shown.

  const dialog = gallery.querySelector("dialog"), room = dialog.querySelector(".stage-of-one");
  let open = null, among = wanted;

  function look(shot) {
    open = shot;
    const parts = [...shot.children].filter((part) => !part.matches(".closer"));
    room.replaceChildren(...parts.map((part) => part.cloneNode(true)));
    const at = among.indexOf(shot);
    dialog.querySelector(".place").textContent = `${at + 1} of ${among.length}`;
    dialog.querySelector(".back").disabled = at <= 0;
    dialog.querySelector(".on").disabled = at >= among.length - 1;
    if (!dialog.open) dialog.showModal();
  }

  function step(by) {
    const next = among[among.indexOf(open) + by];
    if (next) look(next);
  }

  list.addEventListener("click", (event) => {
    if (!event.target.closest(".closer")) return;
    among = wanted;
    look(event.target.closest(".shot"));
  });
  room.addEventListener("click", holdMap);
  dialog.querySelector(".back").addEventListener("click", () => step(-1));
  dialog.querySelector(".on").addEventListener("click", () => step(1));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  // The lists of the worst and the best open the same dialog, and walk along their own list.
  document.querySelectorAll(".end a").forEach((link) => {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const links = [...link.closest("ol").querySelectorAll("a")];
      among = links.map((one) => document.querySelector(one.getAttribute("href")));
      look(document.querySelector(link.getAttribute("href")));
    });
  });

  show();
}
