// Runs before the first paint, so that a chosen theme never flashes in the other one.
"use strict";
try {
  const theme = JSON.parse(localStorage.getItem("sparrow.settings") || "{}").theme;
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is off or holds something else: the system's theme it is.
}
