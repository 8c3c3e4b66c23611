"use strict";
(() => {
  const { names, colors } = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const TAGS = {
    classes: ["incoming", "adapted"], uncertainty: ["incoming", "adapted"],
    changed: ["photograph", "changed pixels"], pseudo: ["photograph", "pseudo labels"],
  };
  const percent = (share) => (100 * share).toFixed(2) + " %";

  // The divider of a picture: everything left of it is before, everything right of it after.
  function cut(slide) {
    const [left, right] = TAGS[document.body.dataset.mode];
    slide.parentElement.style.setProperty("--cut", slide.value + "%");
    slide.setAttribute("aria-valuetext", `${left} on the left ${slide.value} %, ${right} on the rest`);
  }
  for (const slide of all(".slide")) slide.addEventListener("input", () => cut(slide));
  document.getElementById("all-slides")?.addEventListener("input", (event) => {
    for (const slide of all(".slide")) { slide.value = event.target.value; cut(slide); }
  });
  document.getElementById("opacity")?.addEventListener("input", (event) => {
    document.body.style.setProperty("--opacity", event.target.value / 100);
  });

  function show(mode) {
    document.body.dataset.mode = mode;
    for (const viewer of all(".viewer:has(.tag)")) {
      viewer.querySelector(".tag-left").textContent = TAGS[mode][0];
      viewer.querySelector(".tag-right").textContent = TAGS[mode][1];
    }
    all(".slide").forEach(cut);
  }
  for (const radio of all('input[name="mode"]')) radio.addEventListener("change", () => show(radio.value));

  // With one class chosen, label pictures keep its pixels and let the photograph through everywhere else.
  function repaint(image, wanted) {
    image.dataset.original ??= image.src;
    if (wanted === null) { image.src = image.dataset.original; return; }
    const source = new Image();
    source.onload = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [source.width, source.height];
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(source, 0, 0);
      const pixels = context.getImageData(0, 0, canvas.width, canvas.height), values = pixels.data;
      const [r, g, b] = colors[wanted];
      for (let i = 0; i < values.length; i += 4) {
        if (values[i] !== r || values[i + 1] !== g || values[i + 2] !== b) values[i + 3] = 0;
      }
      context.putImageData(pixels, 0, 0);
      if (document.body.dataset.class === String(wanted)) image.src = canvas.toDataURL();
    };
    source.src = image.dataset.original;
  }

  function filter(wanted) {
    document.body.dataset.class = wanted ?? "";
    let shown = 0;
    const cards = all(".card");
    for (const card of cards) {
      const found = wanted === null ? [] : JSON.parse(card.dataset.classes)[wanted];
      card.hidden = !found;
      if (card.hidden) continue;
      shown += 1;
      const line = card.querySelector(".of-class");
      if (line) line.hidden = wanted === null;
      if (line && wanted !== null) line.textContent = `${names[wanted]}: ${percent(found[0])} → ${percent(found[1])} of the image`;
      for (const image of all("img.labels", card)) repaint(image, wanted);
    }
    for (const group of all(".group")) group.hidden = !group.querySelector(".card:not([hidden])");
    for (const button of all(".legend button")) button.setAttribute("aria-pressed", button.dataset.class === String(wanted));
    const status = document.getElementById("filter-status");
    if (status) status.textContent = wanted === null ? "" : `${shown} of ${cards.length} pictures show ${names[wanted]}; only its pixels are coloured.`;
    const select = document.getElementById("class-filter");
    if (select) select.value = wanted ?? "";
  }
  document.getElementById("class-filter")?.addEventListener("change", (event) => {
    filter(event.target.value === "" ? null : Number(event.target.value));
  });
  for (const button of all(".legend button")) button.addEventListener("click", () => {
    filter(button.getAttribute("aria-pressed") === "true" ? null : Number(button.dataset.class));
  });
  if (all(".viewer").length) show(document.querySelector('input[name="mode"]:checked')?.value ?? "classes");
})();
