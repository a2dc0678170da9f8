"use strict";
// What the page does beyond showing: a choice of light and dark, sorting, filtering, points that are named.
// Everything it works on is in the HTML, and readable without it.
(() => {
  const root = document.documentElement;
  const THEMES = ["auto", "light", "dark"];
  const CYCLE = { none: "ascending", ascending: "descending", descending: "none" };
  const NEAR_PX = 24;

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };

  // A private window, or a page from a disk, may have no storage.
  const recall = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const keep = (theme) => { try { localStorage.setItem("theme", theme); } catch { /* for this visit only */ } };

  const show = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
  };
  let theme = THEMES.includes(recall()) ? recall() : "auto";
  show(theme); // before anything is painted

  const addThemeButton = () => {
    const button = make("button", { type: "button", class: "theme" });
    const name = () => { button.textContent = `Colours: ${theme}`; };
    button.addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      show(theme);
      keep(theme);
      name();
    });
    name();
    document.querySelector("header").prepend(button);
  };

  // Numbers before texts before nothing, whatever the direction: what is unknown is never the best. Numbers of different
  // units are not compared: they stand unit by unit.
  const keyOf = (cell) => {
    if (cell.dataset.value !== undefined) return { rank: 0, value: Number(cell.dataset.value), unit: cell.dataset.unit };
    const text = cell.querySelector(".cell")?.textContent ?? cell.textContent.trim();
    if (cell.classList.contains("number")) {
      const number = Number.parseFloat(text.replace("\u2212", "-"));
      return Number.isNaN(number) ? { rank: 2, value: 0 } : { rank: 0, value: number };
    }
    return text ? { rank: 1, value: text } : { rank: 2, value: "" };
  };
  const compare = (a, b) =>
    typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });

  const sortBy = (table, bodies, column, direction) => {
    const sign = direction === "descending" ? -1 : 1;
    const keyed = bodies.map((body, place) => ({ body, place, ...keyOf(body.rows[0].cells[column]) }));
    if (direction !== "none") {
      keyed.sort((a, b) => a.rank - b.rank || compare(a.unit ?? "", b.unit ?? "")
        || sign * compare(a.value, b.value) || a.place - b.place);
    }
    table.append(...keyed.map((row) => row.body));
  };

  const makeSortable = (table, bodies, say) => {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      const title = header.textContent.trim();
      const button = make("button", { type: "button" }, title);
      header.replaceChildren(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const direction = CYCLE[header.getAttribute("aria-sort")];
        headers.forEach((other) => other.setAttribute("aria-sort", other === header ? direction : "none"));
        sortBy(table, bodies, column, direction);
        const units = bodies.some((body) => body.rows[0].cells[column].dataset.unit) ? ", unit by unit" : "";
        say(direction === "none" ? "in the order of the plan" : `sorted by ${title}, ${direction}${units}`);
      });
    });
  };

  const rowText = (body) =>
    [...body.rows[0].cells].map((cell) => cell.querySelector(".cell")?.textContent ?? cell.textContent).join(" ").toLowerCase();

  const makeFilter = (table, bodies, say) => {
    const input = make("input", { type: "search", placeholder: `words, such as: ${table.dataset.example}`, autocomplete: "off" });
    const texts = bodies.map(rowText);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      bodies.forEach((body, i) => { body.hidden = !words.every((word) => texts[i].includes(word)); });
      say("");
    });
    return make("label", {}, "Filter rows ", input);
  };

  const enhanceTable = (table) => {
    const bodies = [...table.tBodies];
    const status = make("output", { role: "status", "aria-live": "polite" });
    let order = "in the order of the plan";
    const say = (news) => {
      order = news || order;
      status.textContent = `${bodies.filter((body) => !body.hidden).length} of ${bodies.length} rows, ${order}`;
    };
    makeSortable(table, bodies, say);
    const tools = make("div", { class: "tools" }, makeFilter(table, bodies, say), status);
    table.parentElement.before(tools);
    say("");
  };

  // What is behind all cells of a row, and of a table, is written once; an opened explanation borrows it.
  const lendFacts = (event) => {
    const [, table, row, column] = event.target.id.match(/^(\w+)-(\d+)-(\d+)$/) ?? [];
    const back = event.target.querySelector(".back");
    if (event.newState !== "open" || !table || !back) return;
    const lists = [document.querySelector(`[id="${table}-${row}"] > dl`), document.getElementById(`${table}-common`)];
    const terms = lists.flatMap((list) => [...list.querySelectorAll("dt")]);
    const ours = terms.filter(({ dataset }) => !dataset.column || dataset.column === column);
    back.replaceWith(make("dl", {}, ...ours.flatMap((dt) => [dt.cloneNode(true), dt.nextElementSibling.cloneNode(true)])));
  };

  const nearest = (points, x, y) => {
    let best = null;
    let least = NEAR_PX;
    for (const point of points) {
      const box = point.getBoundingClientRect();
      const distance = Math.hypot(x - box.x - box.width / 2, y - box.y - box.height / 2);
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  };

  const place = (tip, point) => {
    const box = point.getBoundingClientRect();
    tip.textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    const left = Math.min(box.right + 10, innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above < 8 ? box.bottom + 8 : above}px`;
  };

  const enhanceFigure = (figure, tip) => {
    const points = [...figure.querySelectorAll(".point")];
    // The browser's own tooltip would say the same again.
    points.forEach((point) => point.querySelector("title")?.remove());
    const turn = (chosen) => points.forEach((point) => point.setAttribute("tabindex", point === chosen ? "0" : "-1"));
    const point = (chosen) => {
      points.forEach((other) => other.classList.toggle("near", other === chosen));
      if (chosen) place(tip, chosen);
      else tip.hidden = true;
    };
    turn(points[0]); // one stop for Tab, arrows within
    figure.addEventListener("keydown", (event) => {
      const at = points.indexOf(document.activeElement);
      if (at < 0) return;
      const last = points.length - 1;
      const steps = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last };
      if (event.key === "Escape") point(null);
      if (!(event.key in steps)) return;
      event.preventDefault();
      points[Math.min(last, Math.max(0, steps[event.key]))].focus();
    });
    figure.addEventListener("focusin", (event) => { turn(event.target); point(event.target); });
    figure.addEventListener("focusout", () => point(null));
    figure.addEventListener("pointermove", (event) => point(nearest(points, event.clientX, event.clientY)));
    figure.addEventListener("pointerleave", () => point(null));
  };

  document.addEventListener("DOMContentLoaded", () => {
    addThemeButton();
    document.querySelectorAll("table.sortable").forEach(enhanceTable);
    document.addEventListener("beforetoggle", lendFacts, true);
    const tip = make("div", { class: "tip", "aria-hidden": "true", hidden: "" });
    document.body.append(tip);
    addEventListener("scroll", () => {
      const named = document.querySelector(".point.near");
      if (named) place(tip, named);
    }, { passive: true, capture: true });
    document.querySelectorAll(".living").forEach((figure) => enhanceFigure(figure, tip));
    root.dataset.ready = "";
  });
})();
