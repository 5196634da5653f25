() => {
  document.querySelector("#live textarea")?.setAttribute("aria-label", "Text as it comes");
  const begun = sessionStorage.getItem("router-request");
  if (begun) put("#prompt textarea", begun);
  if (begun && sessionStorage.getItem("router-send")) press("generate");
  for (const name of ["router-request", "router-send"]) sessionStorage.removeItem(name);
  setTimeout(pageIsReady, 500);  // Gradio runs this just before its own events are there
}
