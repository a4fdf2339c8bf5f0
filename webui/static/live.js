// Polling, and the little that HTML cannot do by itself. Without it every page works, by reloading.
"use strict";

(() => {
  const BUSY = 2000, IDLE = 5000; // milliseconds between looks, while something runs and while nothing does
  const PAUSED = "seqproc-paused";
  const pause = document.getElementById("pause");
  const state = document.getElementById("poll-state");
  const live = () => document.getElementById("live");
  let timer = 0;
  let etag = document.getElementById("main").dataset.etag;
  let kept = { checked: [], open: [] }; // by id, over one swap

  document.documentElement.classList.add("script");

  function paused() {
    return localStorage.getItem(PAUSED) !== null;
  }

  function schedule() {
    clearTimeout(timer);
    if (live() && !paused() && !document.hidden) {
      timer = setTimeout(poll, live().hasAttribute("data-idle") ? IDLE : BUSY);
    }
  }

  function poll() {
    if (!isBeingRead()) htmx.trigger(document.body, "poll");
    schedule();
  }

  // Text that someone is selecting must not be replaced under the pointer.
  function isBeingRead() {
    const selection = getSelection();
    return !selection.isCollapsed && selection.containsNode(live(), true);
  }

  function showPause() {
    pause.hidden = !live();
    pause.setAttribute("aria-pressed", paused());
    pause.textContent = paused() ? "Resume updates" : "Pause updates";
  }

  pause.addEventListener("click", () => {
    if (paused()) localStorage.removeItem(PAUSED);
    else localStorage.setItem(PAUSED, "1");
    showPause();
    if (!paused() && live()) htmx.trigger(document.body, "poll");
    schedule();
  });

  document.addEventListener("visibilitychange", schedule);
  document.body.addEventListener("htmx:configRequest", (event) => {
    if (etag) event.detail.headers["If-None-Match"] = etag;
  });

  document.body.addEventListener("htmx:beforeSwap", (event) => {
    const { xhr, target } = event.detail;
    if (target.id !== "live" || xhr.status !== 200) return;
    if (!xhr.getResponseHeader("ETag")) { // another page than was asked for: the session is over
      event.detail.shouldSwap = false;
      location.reload();
      return;
    }
    if (xhr.getResponseHeader("ETag") === etag) {
      event.detail.shouldSwap = false;
      return;
    }
    etag = xhr.getResponseHeader("ETag");
    const ids = (selector) => [...target.querySelectorAll(selector)].map((element) => element.id);
    kept = { checked: ids("input[id]:checked"), open: ids("details[id][open]") };
  });

  document.body.addEventListener("htmx:afterSwap", () => {
    const each = (ids, change) => ids.map((id) => document.getElementById(id)).filter(Boolean).forEach(change);
    each(kept.checked, (box) => { box.checked = true; });
    each(kept.open, (details) => { details.open = true; });
  });

  document.body.addEventListener("htmx:afterRequest", (event) => {
    const status = event.detail.xhr.status;
    state.textContent = event.detail.successful || status === 304 ? ""
      : status === 404 ? "This is gone" : "No answer from the server, trying again";
  });

  document.addEventListener("change", (event) => {
    const all = event.target.closest("[data-selects]");
    if (!all) return;
    for (const box of document.getElementsByName(all.dataset.selects)) box.checked = all.checked;
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copies]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch { // only a page by https or on this machine may write there: leave it selected
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });

  showPause();
  schedule();
})();
