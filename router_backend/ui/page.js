() => {
  document.querySelector("#live textarea")?.setAttribute("aria-label", "Text as it comes");
  const begun = sessionStorage.getItem("router-request");
  if (begun) put("#prompt textarea", begun);
  sessionStorage.removeItem("router-request");
  setTimeout(pageIsReady, 500);  // Gradio runs this just before its own events are there
}
