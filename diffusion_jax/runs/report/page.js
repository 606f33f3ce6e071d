(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const colours = 6;
  const dashes = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 2]];
  const borders = ["solid", "dashed", "dotted", "dashed", "dashed"]; // Beside the dashes.
  const plots = [];
  const root = document.documentElement;

  function cssValue(name) {
    return getComputedStyle(root).getPropertyValue(name).trim();
  }
  function colour(i) {
    return cssValue("--c" + (i % colours));
  }
  function shown(value) {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7))
      return value.toExponential(3).replace(/[.]?0+e/, "e").replace("e+", "e");
    return Number.isInteger(value) ? value.toLocaleString("en") : String(+value.toPrecision(5));
  }
  // A number on an axis, short: 200k, 1M.
  function short(value) {
    if (Math.abs(value) < 1e5) return shown(value);
    return value < 1e6 ? shown(value / 1e3) + "k" : shown(value / 1e6) + "M";
  }
  function make(name, attributes, ...content) {
    const element = document.createElement(name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    element.append(...content);
    return element;
  }

  // Points of all curves over one rising x, with null where a curve has none.
  function aligned(curves) {
    const xs = [...new Set(curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
    const columns = curves.map((curve) => {
      const at = new Map(curve.x.map((x, i) => [x, i]));
      return {
        y: xs.map((x) => (at.has(x) ? curve.y[at.get(x)] : null)),
        error: xs.map((x) => (at.has(x) && curve.error.length ? curve.error[at.get(x)] : null)),
      };
    });
    return [xs, columns];
  }

  function axis(label, more) {
    return Object.assign(
      {
        label: label,
        labelSize: 20,
        size: 50,
        font: "12px system-ui, sans-serif",
        labelFont: "12px system-ui, sans-serif",
        stroke: () => cssValue("--soft"),
        grid: { stroke: () => cssValue("--line"), width: 1 },
        ticks: { stroke: () => cssValue("--line"), width: 1, size: 4 },
      },
      more
    );
  }

  // A logarithmic axis has 1, 2 and 5 times each power of ten; over a long range the powers
  // alone, over a short one every number.
  function logValues(plot, splits) {
    const range = Math.log10(splits[splits.length - 1] / splits[0]);
    return splits.map((v) => {
      const digit = Math.round(v / Math.pow(10, Math.floor(Math.log10(v) + 1e-9)));
      const isKept = digit === 1 || range < 0.7 || (range < 3 && (digit === 2 || digit === 5));
      return isKept ? shown(v) : null;
    });
  }

  // The colour and the dashes of a curve are those of its run, if each run has one.
  function places(curves) {
    const runs = curves.map((curve) => curve.run);
    return data.runs.length > 1 && new Set(runs).size === runs.length ? runs : [...runs.keys()];
  }

  // The range of the y axis, with room for the standard errors.
  function rangeWith(columns) {
    return () => {
      const ends = columns.flatMap((column) =>
        column.y.flatMap((y, j) => (y === null ? [] : [y - column.error[j], y + column.error[j]]))
      );
      return uPlot.rangeNum(Math.min(...ends), Math.max(...ends), 0.1, true);
    };
  }

  function drawErrors(columns, places) {
    return (plot) => {
      const context = plot.ctx;
      columns.forEach((column, i) => {
        if (!plot.series[i + 1].show) return;
        context.save();
        context.strokeStyle = colour(places[i]);
        context.lineWidth = devicePixelRatio;
        context.beginPath();
        plot.data[0].forEach((x, j) => {
          if (column.y[j] === null || column.error[j] === null) return;
          const at = plot.valToPos(x, "x", true);
          for (const sign of [-1, 1]) {
            context.moveTo(at, plot.valToPos(column.y[j], "y", true));
            context.lineTo(at, plot.valToPos(column.y[j] + sign * column.error[j], "y", true));
          }
        });
        context.stroke();
        context.restore();
      });
    };
  }

  function draw(place, options, values) {
    const plot = new uPlot(
      Object.assign(
        { width: Math.max(200, place.clientWidth), height: 260, padding: [8, 20, 0, 0] },
        options
      ),
      values,
      place
    );
    plots.push([plot, place]);
    return plot;
  }

  function drawChart(chart, i) {
    const box = document.getElementById("chart-" + i);
    const [xs, columns] = aligned(chart.curves);
    const isDrawn = (y) => y !== null && (!chart.is_log || y > 0);
    const values = [xs, ...columns.map((c) => c.y.map((y) => (isDrawn(y) ? y : null)))];
    const hasPoints = (k) => values[k + 1].filter((y) => y !== null).length < 60;
    const positive = values.slice(1).flat().filter((y) => y !== null);
    const isLog = chart.is_log && positive.length > 0;
    const hasErrors = chart.curves.some((curve) => curve.error.length);
    const at = places(chart.curves);
    const series = chart.curves.map((curve, k) => ({
      label: curve.label,
      stroke: () => colour(at[k]),
      width: 1.75,
      dash: dashes[at[k] % dashes.length],
      spanGaps: true,
      points: { show: hasPoints(k), size: 5, fill: () => colour(at[k]) },
      value: (plot, y) => (y === null ? "–" : shown(y)),
    }));
    draw(
      box.querySelector(".plot"),
      {
        series: [{ label: chart.x, value: (plot, x) => (x === null ? "–" : shown(x)) }, ...series],
        scales: {
          x: { time: false, distr: chart.is_x_log ? 3 : 1 },
          y: isLog ? { distr: 3 } : hasErrors ? { range: rangeWith(columns) } : {},
        },
        axes: [
          axis(chart.x, {
            size: 36,
            values: (plot, splits) => splits.map(short),
            ...(chart.is_x_log ? { splits: () => xs, filter: (plot, splits) => splits } : {}),
          }),
          axis(chart.y, {
            size: 62,
            values: isLog ? logValues : (plot, splits) => splits.map(short),
            ...(isLog ? { filter: (plot, splits) => splits } : {}),
          }),
        ],
        cursor: { points: { size: 7 }, drag: { x: true, y: false } },
        legend: { markers: { width: 2, fill: null, dash: (plot, k) => borders[at[k - 1] % 5] } },
        hooks: { draw: [drawErrors(columns, at)] },
      },
      values
    );
    const numbers = box.querySelector("details");
    numbers.addEventListener("toggle", () => fill(numbers, chart, xs, columns));
  }

  // The numbers of a chart, made when they are first asked for.
  function fill(numbers, chart, xs, columns) {
    const place = numbers.querySelector(".numbers");
    if (place.firstChild) return;
    const heads = [chart.x];
    chart.curves.forEach((curve) => {
      heads.push(curve.label);
      if (curve.error.length) heads.push("standard error");
    });
    const rows = xs.map((x, j) => {
      const cells = [make("th", { scope: "row" }, String(x))];
      chart.curves.forEach((curve, k) => {
        const found = [columns[k].y[j]];
        if (curve.error.length) found.push(columns[k].error[j]);
        found.forEach((v) => cells.push(make("td", {}, v === null ? "" : String(v))));
      });
      return make("tr", {}, ...cells);
    });
    const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
    const table = make(
      "table", {}, make("caption", {}, chart.title), make("thead", {}, head), make("tbody", {}, ...rows)
    );
    const label = "Numbers: " + chart.title;
    place.append(
      make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label }, table)
    );
  }

  function drawTimeLine(events, end, i) {
    const box = document.getElementById("timeline-" + i);
    if (!box) return;
    const kinds = [...new Set(events.map((event) => event.kind))];
    const xs = [...new Set([0, end, ...events.map((event) => event.step)])].sort((a, b) => a - b);
    const values = kinds.map((kind, k) => {
      const at = new Set(events.filter((event) => event.kind === kind).map((event) => event.step));
      return xs.map((x) => (at.has(x) ? kinds.length - k : null));
    });
    const series = kinds.map((kind, k) => ({
      label: kind,
      stroke: () => colour(k),
      paths: () => null,
      points: { show: true, size: 10, fill: () => colour(k) },
      value: (plot, y) => (y === null ? "–" : "yes"),
    }));
    draw(
      box.querySelector(".plot"),
      {
        height: 90 + 26 * kinds.length,
        legend: { show: false },
        series: [{ label: "train step" }, ...series],
        scales: { x: { time: false }, y: { range: [0.4, kinds.length + 0.6] } },
        axes: [
          axis("train step", { size: 36, values: (plot, splits) => splits.map(short) }),
          axis("", {
            labelSize: 0,
            size: 74,
            splits: () => kinds.map((kind, k) => kinds.length - k),
            values: () => kinds,
          }),
        ],
      },
      [xs, ...values]
    );
  }

  function slide(slider, show, text) {
    const output = slider.parentNode.querySelector("output");
    const update = () => {
      const i = Number(slider.value);
      show(i);
      output.textContent = text(i);
      slider.setAttribute("aria-valuetext", text(i));
    };
    slider.addEventListener("input", update);
    update();
    return update;
  }

  function startGrids() {
    const box = document.getElementById("grids");
    if (!box) return;
    const figures = [...box.querySelectorAll("figure")];
    const show = (i) => {
      figures.forEach((figure) => {
        const run = Number(figure.dataset.run);
        const grids = data.grids[run];
        const before = grids.filter((grid) => grid.step <= data.steps[i]);
        const grid = before.length ? before[before.length - 1] : grids[0];
        figure.querySelector("img").src = grid.src;
        const name = data.runs.length > 1 ? data.runs[run] + ": " : "";
        figure.querySelector("figcaption").textContent = name + grid.title;
      });
    };
    slide(box.querySelector("input"), show, (i) => "step " + data.steps[i].toLocaleString("en"));
  }

  function startPlayer(player) {
    const frames = data.chains[Number(player.dataset.run)];
    const image = player.querySelector("img");
    const slider = player.querySelector("input");
    const play = player.querySelector(".play");
    const name = play.getAttribute("aria-label").slice("Play".length);
    let timer = null;
    const update = slide(
      slider,
      (i) => {
        image.src = frames[i].src;
      },
      (i) => frames[i].title
    );
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
      play.setAttribute("aria-label", "Play" + name);
    };
    const go = (i) => {
      slider.value = String(Math.min(frames.length - 1, Math.max(0, i)));
      update();
    };
    const tick = () => {
      go(Number(slider.value) + 1);
      if (Number(slider.value) === frames.length - 1) stop();
    };
    play.addEventListener("click", () => {
      if (timer !== null) return stop();
      if (Number(slider.value) === frames.length - 1) go(0);
      timer = setInterval(tick, 120);
      play.textContent = "Pause";
      play.setAttribute("aria-label", "Pause" + name);
    });
    const step = (by) => () => {
      stop();
      go(Number(slider.value) + by);
    };
    player.querySelector(".back").addEventListener("click", step(-1));
    player.querySelector(".forth").addEventListener("click", step(1));
    slider.addEventListener("input", stop);
  }

  data.charts.forEach(drawChart);
  data.events.forEach((events, i) => drawTimeLine(events, data.ends[i], i));
  startGrids();
  document.querySelectorAll(".player").forEach(startPlayer);

  let waiting = null;
  window.addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => {
      plots.forEach(([plot, place]) => {
        const width = Math.max(200, place.clientWidth);
        if (width !== plot.width) plot.setSize({ width: width, height: plot.height });
      });
    });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    plots.forEach(([plot]) => plot.redraw(false, true));
  });
})();
