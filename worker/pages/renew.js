// Puts the page's newest content in place every two seconds, unless someone is marking text in it.
const every = 2000, patience = 6000;
let answered = new Date();
async function renew() {
  try {
    const answer = await fetch(location.href, { signal: AbortSignal.timeout(patience) });
    if (!answer.ok) throw new Error(answer.status);
    const newer = new DOMParser().parseFromString(await answer.text(), "text/html");
    answered = new Date();
    document.body.classList.remove("gone");
    if (String(getSelection())) return;
    const main = document.querySelector("main");
    for (const open of main.querySelectorAll("details[open]")) newer.getElementById(open.id)?.setAttribute("open", "");
    document.title = newer.title;
    main.replaceWith(newer.querySelector("main"));
  } catch {
    document.body.classList.add("gone");
    document.getElementById("since").textContent = answered.toLocaleTimeString();
    document.title = document.title.replace(/^(\? )?/, "? ");
  } finally {
    setTimeout(renew, every);
  }
}
if (document.body.dataset.renewed) setTimeout(renew, every);
