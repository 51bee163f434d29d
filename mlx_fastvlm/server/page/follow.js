// The page scrolls along with an answer that grows, unless who reads has scrolled away.

const NEAR = 80; // pixels from the end that still count as being there

/** To the end of the page. */
export function toEnd() {
  const page = document.documentElement;
  page.scrollTop = page.scrollHeight;
}

/** Do `change`, which may make the page longer; where its end was in view, it still is. */
export function following(change) {
  const page = document.documentElement;
  const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < NEAR;
  change();
  if (atEnd) toEnd();
}
