/** Dark or light. */

const dark = matchMedia("(prefers-color-scheme: dark)");

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

/** The other one, from now on. */
export function toggleTheme() {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("hqsam-theme", theme);
  setTheme(theme);
}

/** The user's choice, or else the system's, also when that changes. */
export function followTheme() {
  setTheme(localStorage.getItem("hqsam-theme") ?? (dark.matches ? "dark" : "light"));
  dark.onchange = followTheme;
}
