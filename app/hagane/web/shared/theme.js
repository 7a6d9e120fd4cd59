// A classic script in the head: the chosen colours are there before anything is painted.
try {
  const { theme } = JSON.parse(localStorage.getItem("hagane.preferences")) ?? {};
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Preferences that cannot be read are as good as none: the system's colours apply.
}
