// Among a response's tokens the arrow keys go; Tab goes from one response to the next. Without this, Tab goes to each.
"use strict";

function settle(root) {
  for (const tokens of root.querySelectorAll(".tokens"))
    for (const token of tokens.querySelectorAll(".token")) token.tabIndex = token === tokens.firstElementChild ? 0 : -1;
}

document.addEventListener("keydown", (event) => {
  const token = event.target.closest?.(".tokens > .token");
  if (!token || event.altKey || event.ctrlKey || event.metaKey) return;
  const to = {
    ArrowRight: token.nextElementSibling,
    ArrowLeft: token.previousElementSibling,
    Home: token.parentElement.firstElementChild,
    End: token.parentElement.lastElementChild,
  }[event.key];
  if (!to) return;
  event.preventDefault();
  token.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
});

settle(document);
document.addEventListener("htmx:afterSettle", () => settle(document));
