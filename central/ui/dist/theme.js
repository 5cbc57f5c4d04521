// Before the first paint, so that nobody who chose the dark sees a flash of light.
try {
  const theme = localStorage.getItem('tapio-theme');
  if (theme === 'dark' || theme === 'light') document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be forbidden; the system's setting then holds.
}
