// Pads: canvases of exactly the model's size, on which a picture is painted and a part of it covered.
(() => {
  const pads = {};
  const get = (id) => (pads[id] ??= { id, width: 28, height: 28, tool: "brush", brush: 2.2, past: [] });
  const blank = (pad) => {
    const made = document.createElement("canvas");
    made.width = pad.width;
    made.height = pad.height;
    return made;
  };

  function show(pad) {
    const canvas = document.querySelector(`.sf-pad[data-pad="${pad.id}"] canvas`);
    if (!canvas) return;
    canvas.width = pad.width;
    canvas.height = pad.height;
    const context = canvas.getContext("2d");
    context.drawImage(pad.picture, 0, 0);
    if (!pad.mask) return;
    const cover = blank(pad);
    const paint = cover.getContext("2d");
    paint.drawImage(pad.mask, 0, 0);
    paint.globalCompositeOperation = "source-in";
    paint.fillStyle = "rgb(235, 110, 60)";
    paint.fillRect(0, 0, pad.width, pad.height);
    context.globalAlpha = 0.85;
    context.drawImage(cover, 0, 0);
    context.globalAlpha = 1;
  }

  function reset(pad, width, height) {
    pad.width = width;
    pad.height = height;
    pad.brush = Math.max(1.5, (2.2 * Math.max(width, height)) / 28);
    pad.picture = blank(pad);
    const context = pad.picture.getContext("2d");
    context.fillStyle = "black";
    context.fillRect(0, 0, width, height);
    pad.past = [];
    if (pad.masked) hide(pad, 0.5);
  }

  // Cover the lower part of the picture, or nothing of it.
  function hide(pad, share) {
    pad.mask = blank(pad);
    const context = pad.mask.getContext("2d");
    const top = Math.round(pad.height * (1 - share));
    context.fillRect(0, top, pad.width, pad.height - top);
  }

  function copy(canvas) {
    const made = document.createElement("canvas");
    made.width = canvas.width;
    made.height = canvas.height;
    made.getContext("2d").drawImage(canvas, 0, 0);
    return made;
  }

  function remember(pad) {
    pad.past.push([copy(pad.picture), pad.mask ? copy(pad.mask) : null]);
    if (pad.past.length > 30) pad.past.shift();
  }

  function stroke(pad, from, to) {
    const covering = pad.tool === "cover" || pad.tool === "uncover";
    const context = (covering ? pad.mask : pad.picture).getContext("2d");
    context.save();
    if (covering) {
      // Whole pixels: a pixel is known or it is not.
      const radius = Math.max(1, Math.round(pad.brush * 0.9));
      const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])));
      for (let i = 0; i <= steps; i++) {
        const x = Math.floor(from[0] + ((to[0] - from[0]) * i) / steps) - radius;
        const y = Math.floor(from[1] + ((to[1] - from[1]) * i) / steps) - radius;
        if (pad.tool === "cover") context.fillRect(x, y, 2 * radius + 1, 2 * radius + 1);
        else context.clearRect(x, y, 2 * radius + 1, 2 * radius + 1);
      }
    } else {
      context.strokeStyle = pad.tool === "brush" ? "white" : "black";
      context.lineWidth = pad.tool === "brush" ? pad.brush : 1.6 * pad.brush;
      context.lineCap = context.lineJoin = "round";
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(to[0] + 0.01, to[1]);
      context.stroke();
    }
    context.restore();
    show(pad);
  }

  function choose(pad, root, tool) {
    pad.tool = tool;
    for (const b of root.querySelectorAll("[data-tool]")) b.setAttribute("aria-pressed", String(b.dataset.tool === tool));
  }

  function act(pad, root, what) {
    if (what === "undo") {
      const before = pad.past.pop();
      if (before) [pad.picture, pad.mask] = before;
    } else {
      remember(pad);
      const context = pad.picture.getContext("2d");
      if (what === "clear") {
        context.fillStyle = "black";
        context.fillRect(0, 0, pad.width, pad.height);
        if (!pad.masked) choose(pad, root, "brush");
      } else if (what === "invert") {
        context.globalCompositeOperation = "difference";
        context.fillStyle = "white";
        context.fillRect(0, 0, pad.width, pad.height);
        context.globalCompositeOperation = "source-over";
      } else if (what === "half") hide(pad, 0.5);
      else if (what === "none") hide(pad, 0);
    }
    show(pad);
  }

  function start(root) {
    root.dataset.ready = "yes";
    const pad = get(root.dataset.pad);
    pad.masked = root.dataset.masked === "yes";
    if (!pad.picture) reset(pad, pad.width, pad.height);
    if (pad.masked && !pad.mask) hide(pad, 0.5); // its picture came before the tab was opened
    choose(pad, root, pad.masked ? "cover" : "brush");
    for (const b of root.querySelectorAll("[data-tool]")) b.onclick = () => choose(pad, root, b.dataset.tool);
    for (const b of root.querySelectorAll("[data-act]")) b.onclick = () => act(pad, root, b.dataset.act);
    const canvas = root.querySelector("canvas");
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * pad.width, ((event.clientY - box.top) / box.height) * pad.height];
    };
    let last = null;
    canvas.onpointerdown = (event) => {
      canvas.setPointerCapture(event.pointerId);
      remember(pad);
      last = at(event);
      stroke(pad, last, last);
    };
    canvas.onpointermove = (event) => {
      if (last === null) return;
      const next = at(event);
      stroke(pad, last, next);
      last = next;
    };
    canvas.onpointerup = canvas.onpointercancel = () => (last = null);
    show(pad);
  }

  window.scorefieldPads = {
    // What is on a pad, for Python: the picture, and white where it is known.
    read(id) {
      const pad = get(id);
      if (!pad.picture) return "";
      const found = { picture: pad.picture.toDataURL("image/png") };
      if (pad.mask) {
        const known = blank(pad);
        const context = known.getContext("2d");
        context.fillStyle = "white";
        context.fillRect(0, 0, pad.width, pad.height);
        context.drawImage(pad.mask, 0, 0);
        found.known = known.toDataURL("image/png");
      }
      return JSON.stringify(found);
    },
    // Pictures from Python, as {pad: {width, height, picture}}.
    write(text) {
      for (const [id, { width, height, picture }] of Object.entries(JSON.parse(text || "{}"))) {
        const pad = get(id);
        const image = new Image();
        image.onload = () => {
          if (pad.picture) remember(pad);
          const [past, same] = [pad.past, pad.picture && pad.width === width && pad.height === height];
          const mask = same ? pad.mask : null;
          reset(pad, width, height);
          if (same) [pad.past, pad.mask] = [past, mask];
          pad.picture.getContext("2d").drawImage(image, 0, 0);
          show(pad);
        };
        image.src = picture;
      }
    },
  };

  const find = () => document.querySelectorAll(".sf-pad:not([data-ready])").forEach(start);
  new MutationObserver(find).observe(document, { childList: true, subtree: true });
  find();
})();
