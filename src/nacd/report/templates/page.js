"use strict";

// Charts: figures come with names of colours, which the style sheet has for light and for dark.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 720px)");
  const names = ["paper", "ink", "muted", "line", "grid", "accent", "second", "third", "baseline"];

  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    return Object.fromEntries(names.map((n) => ["$" + n, style.getPropertyValue("--" + n).trim()]));
  };

  const paint = (value, colour) => {
    if (typeof value === "string") return Object.hasOwn(colour, value) ? colour[value] : value;
    if (Array.isArray(value)) return value.map((inner) => paint(inner, colour));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, paint(v, colour)]));
  };

  const axis = (given) => ({
    gridcolor: "$grid", linecolor: "$line", tickcolor: "$line", zeroline: false, ticks: "",
    fixedrange: true, automargin: true, tickfont: { color: "$muted" }, ...given,
    title: { standoff: 10, font: { color: "$muted", size: 12 }, ...given.title },
  });

  const draw = (figure, colour) => {
    const layout = { ...figure.layout };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) layout[key] = axis(layout[key]);
    }
    const legend = { orientation: "h", x: 0, y: 1, yanchor: "bottom", xanchor: "left" };
    const whole = {
      showlegend: false, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "$ink" },
      margin: { l: 8, r: 12, t: layout.showlegend ? 30 : 18, b: 8 }, dragmode: false,
      hovermode: "closest", hoverlabel: { bgcolor: "$paper", bordercolor: "$line", font: { color: "$ink" } },
      legend, ...layout,
    };
    if (narrow.matches) whole.font.size = 11;
    const place = document.getElementById("chart-" + figure.id);
    const options = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false };
    return Plotly.react(place, paint(figure.data, colour), paint(whole, colour), options);
  };

  const all = () => { const colour = colours(); return Promise.all(figures.map((f) => draw(f, colour))); };
  const drawn = () => all().then(() => { document.documentElement.dataset.drawn = figures.length; });
  drawn();
  dark.addEventListener("change", drawn);
  narrow.addEventListener("change", drawn);
})();

// Rows: search, sort, and changed ones only.
(() => {
  const list = document.getElementById("list");
  if (!list) return;
  const [search, sort, only] = ["search", "sort", "only"].map((id) => document.getElementById(id));
  const count = document.getElementById("count");
  const nothing = document.getElementById("nothing");
  const fold = (text) => text.normalize("NFKC").toLowerCase();
  const rows = [...list.children].map((element) => ({
    element,
    number: Number(element.dataset.number),
    changed: Number(element.dataset.changed),
    figure: (name) => Number(element.dataset[name]),
    source: element.querySelector(".source").textContent,
    text: fold(
      [...element.querySelectorAll(".text, .source")].map((part) => part.textContent).join("\n"),
    ),
  }));
  const orders = {
    number: (a, b) => a.number - b.number,
    source: (a, b) =>
      a.source.localeCompare(b.source, undefined, { numeric: true }) || a.number - b.number,
  };
  const largest = (name) => (a, b) => b.figure(name) - a.figure(name) || a.number - b.number;
  const total = rows.length.toLocaleString("en");

  const filter = () => {
    const words = fold(search.value).split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const fits = words.every((word) => row.text.includes(word)) && (!only?.checked || row.changed > 0);
      row.element.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown === rows.length ? `${total} rows` : `${shown.toLocaleString("en")} of ${total} rows`;
    nothing.hidden = shown > 0;
  };
  const order = () => list.append(...[...rows].sort(orders[sort.value] ?? largest(sort.value)).map((row) => row.element));

  search.addEventListener("input", filter);
  only?.addEventListener("change", filter);
  sort.addEventListener("change", order);
  search.form.addEventListener("submit", (event) => event.preventDefault());
  search.form.addEventListener("reset", () => setTimeout(() => { filter(); order(); }));
  search.form.reset();  // a reloaded page may keep what stood in the fields
})();
