"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const levels = data.colours.length - 1;
  const pauseMs = 700;

  const text = (cell) => (cell < 0 ? "–" : (cell / 1000).toFixed(3));

  // Same integer arithmetic as in matrix.py, which made the page.
  function level(cell) {
    if (cell < 0) return levels;
    const place = Math.floor(((cell - data.low) * levels) / (data.high - data.low));
    return Math.min(levels - 1, Math.max(0, place));
  }

  function colour(node, cell) {
    node.className = `k${level(cell)}${node.classList.contains("own") ? " own" : ""}`;
  }

  function paint(canvas, cells) {
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    cells.forEach((cell, place) => {
      const rgb = parseInt(data.colours[level(cell)].slice(1), 16);
      image.data.set([rgb >> 16, (rgb >> 8) & 255, rgb & 255, 255], 4 * place);
    });
    context.putImageData(image, 0, 0);
  }

  function follow(block, run) {
    const slider = block.querySelector("input");
    const output = block.querySelector("output");
    const play = block.querySelector("[data-play]");
    const canvas = block.querySelector("canvas");
    const cells = [...block.querySelectorAll("table.numbers tbody:not(.summary) td")];
    const sums = [...block.querySelectorAll("table.numbers tfoot td, table.numbers .summary td")];
    const last = run.after.length - 1;
    let timer = 0;

    function show(place) {
      const after = `after ${run.after[place].toLocaleString("en-US")} ${run.after[place] === 1 ? "round" : "rounds"}`;
      slider.value = place;
      slider.setAttribute("aria-valuetext", after);
      output.textContent = after;
      block.querySelectorAll("[data-after]").forEach((node) => { node.textContent = after; });
      cells.forEach((node, i) => {
        node.textContent = text(run.cells[place][i]);
        colour(node, run.cells[place][i]);
      });
      sums.forEach((node, i) => { node.textContent = text(run.summary[place][i]); });
      if (canvas) paint(canvas, run.cells[place]);
    }

    function stop() {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
    }

    function step(by) {
      show(Math.min(last, Math.max(0, Number(slider.value) + by)));
    }

    slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
    block.querySelectorAll("[data-step]").forEach((button) => {
      button.addEventListener("click", () => { stop(); step(Number(button.dataset.step)); });
    });
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (Number(slider.value) === last) show(0);
      play.textContent = "Pause";
      timer = setInterval(() => {
        step(1);
        if (Number(slider.value) === last) stop();
      }, pauseMs);
    });

    if (canvas) {
      block.querySelector("img").hidden = true;
      canvas.hidden = false;
      show(last);
    }
    block.querySelector(".controls").hidden = false;
  }

  for (const [id, run] of Object.entries(data.runs)) {
    follow(document.querySelector(`.matrix[data-run="${id}"]`), run);
  }

  // Open all folded parts before printing, because paper cannot unfold them.
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll("details:not([open])")];
    unfolded.forEach((node) => { node.open = true; });
  });
  addEventListener("afterprint", () => unfolded.forEach((node) => { node.open = false; }));
})();
