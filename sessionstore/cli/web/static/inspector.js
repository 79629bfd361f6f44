"use strict"

// Every page works without this file, but for following a session. HTML that is inserted here comes
// from the templates of the inspector, which escape what is stored.

// In the page while it follows: at its end, and while somebody reads further up.
const MOST_EVENTS = 500
const MOST_EVENTS_IF_READ = 2000
const byId = (id) => document.getElementById(id)

async function load(address) {
  const response = await fetch(address, { headers: { accept: "text/html" } })
  const found = new DOMParser().parseFromString(await response.text(), "text/html")
  return { found, ok: response.ok }
}

// A list that is not complete yet is read again until it is.
async function refresh() {
  const shown = byId("found")
  if (!shown || !("again" in shown.dataset)) return
  await new Promise((done) => setTimeout(done, 500))
  try {
    const address = new URL(location)
    address.searchParams.delete("again")
    const { found } = await load(address)
    const fresh = found.getElementById("found")
    const focused = shown.contains(document.activeElement) ? document.activeElement.href : null
    if (fresh) shown.replaceWith(fresh)
    if (focused) [...fresh.querySelectorAll("a")].find((link) => link.href === focused)?.focus()
  } catch {
    // The inspector may have stopped. The next attempt will tell.
  }
  refresh()
}

// -- a session -------------------------------------------------------------------------------------

const events = byId("events")
const positionOf = (event) => Number(event.dataset.position)
const shownEvents = () => [...events.querySelectorAll(".event")]
const end = () => document.querySelector(".conversation").getBoundingClientRect().bottom
const isAtEnd = () => end() <= innerHeight + 120
const scrollToEnd = () => scrollBy(0, Math.max(end() - innerHeight + 16, 0))

function toElements(html) {
  const holder = document.createElement("template")
  holder.innerHTML = html
  return [...holder.content.children]
}

function insert(element) {
  const all = shownEvents()
  const after = all.findLast((event) => positionOf(event) <= positionOf(element))
  if (after && positionOf(after) === positionOf(element)) after.replaceWith(element)
  else if (after) {
    element.classList.toggle("starts-run", after.dataset.run !== element.dataset.run)
    after.after(element)
  } else {
    for (const empty of events.querySelectorAll(".empty")) empty.remove()
    events.prepend(element)
  }
}

// Older events go when there are too many; the link to them stays right.
function trim(most) {
  const surplus = shownEvents().slice(0, -most)
  for (const event of surplus) event.remove()
  if (surplus.length) pointOlderTo(positionOf(shownEvents()[0]))
}

function pointOlderTo(position) {
  let link = byId("older")
  if (!link) {
    link = document.createElement("a")
    link.id = "older"
    link.className = "button quiet"
    link.textContent = "Older events"
    document.querySelector(".conversation > .pages").append(link)
  }
  const address = new URL(location)
  address.hash = ""
  address.searchParams.set("before", position)
  link.href = address
}

async function showOlder(link) {
  const height = document.documentElement.scrollHeight
  link.setAttribute("aria-busy", "true")
  const { found, ok } = await load(link.href)
  if (!ok) return location.assign(link.href)
  events.prepend(...found.getElementById("events").children)
  const next = found.getElementById("older")
  if (next) link.href = next.href
  else link.remove()
  link.removeAttribute("aria-busy")
  scrollBy(0, document.documentElement.scrollHeight - height)
}

function follow() {
  const state = byId("live")
  const fresh = byId("fresh")
  const fragment = byId("fragment")
  let cursor = events.dataset.cursor
  let source = null
  let numFresh = 0
  let writer = null
  let reading = null

  const show = (name, text) => {
    state.dataset.state = name
    state.textContent = text
  }

  const announce = (wasAtEnd) => {
    if (wasAtEnd) return scrollToEnd()
    numFresh += 1
    fresh.textContent = numFresh === 1 ? "1 new event ↓" : `${numFresh} new events ↓`
    fresh.hidden = false
  }

  const readFacts = () => {
    reading ??= setTimeout(async () => {
      try {
        const { found, ok } = await load(events.dataset.facts)
        const facts = byId("facts")
        if (ok && !facts.contains(document.activeElement) && !facts.querySelector("details[open]")) {
          facts.replaceChildren(...found.body.children)
        }
      } catch {
        // The inspector cannot be reached. The stream shows that.
      } finally {
        reading = null
      }
    }, 700)
  }

  const hideFragment = () => {
    fragment.hidden = true
    writer = null
    fragment.querySelector(".text").textContent = ""
  }

  const take = {
    ready() {
      show("on", "live")
    },
    event(news) {
      const wasAtEnd = isAtEnd()
      if (news.writer === writer) hideFragment()
      for (const element of toElements(news.html)) {
        element.classList.add("fresh-event")
        insert(element)
      }
      trim(wasAtEnd ? MOST_EVENTS : MOST_EVENTS_IF_READ)
      announce(wasAtEnd)
      readFacts()
    },
    fragment(news) {
      const wasAtEnd = isAtEnd()
      if (news.writer !== writer) hideFragment()
      writer = news.writer
      fragment.hidden = false
      fragment.querySelector("strong").textContent = news.author
      fragment.querySelector(".text").append(news.text)
      if (wasAtEnd) scrollToEnd()
    },
    change(news) {
      const all = shownEvents()
      const oldest = all.length ? positionOf(all[0]) : 0
      const changed = all.filter((each) => {
        const position = positionOf(each)
        return position >= news.first && position <= news.last
      })
      const note = document.createElement("p")
      note.className = "divider"
      const numRemoved = changed.length - news.positions.length
      note.textContent = numRemoved > 0
        ? `${numRemoved === 1 ? "1 event was" : `${numRemoved} events were`} removed here`
        : "Events were replaced here"
      if (changed.length) changed[0].before(note)
      for (const each of changed) each.remove()
      for (const element of toElements(news.html.join(""))) {
        if (positionOf(element) >= oldest) insert(element)
      }
      readFacts()
    },
    end(news) {
      source.close()
      source = null
      cursor = null
      hideFragment()
      show("ended", news.text)
    },
    problem(news) {
      show("waiting", `connecting again: ${news.text}`)
    },
  }

  const open = () => {
    if (source || cursor === null) return
    const address = new URL(events.dataset.live, location)
    address.searchParams.set("after", cursor)
    source = new EventSource(address)
    source.onmessage = (message) => {
      const news = JSON.parse(message.data)
      if (message.lastEventId) cursor = message.lastEventId
      take[news.kind](news)
    }
    source.onerror = () => {
      const isClosed = source?.readyState === EventSource.CLOSED
      if (isClosed) show("ended", "not followed any longer; reload the page")
      else if (state.dataset.state === "on") show("waiting", "connecting again …")
    }
  }

  // A browser opens only six connections to a host. A hidden page gives its connection back.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      source?.close()
      source = null
      if (cursor !== null) show("waiting", "paused")
    } else open()
  })
  fresh.addEventListener("click", () => scrollToEnd())
  addEventListener("scroll", () => {
    if (!isAtEnd()) return
    numFresh = 0
    fresh.hidden = true
  })
  if (!location.hash) scrollToEnd()
  open()
}

// -- keys ------------------------------------------------------------------------------------------

function isOnScreen(element) {
  const { top, bottom } = element.getBoundingClientRect()
  return bottom > 0 && top < innerHeight
}

function step(number) {
  const all = shownEvents()
  const at = all.indexOf(document.activeElement.closest(".event"))
  const next = at < 0 ? all.filter(isOnScreen).at(number > 0 ? 0 : -1) : all[at + number]
  next?.focus({ preventScroll: true })
  next?.scrollIntoView({ block: "nearest" })
}

addEventListener("keydown", (press) => {
  const isTyping = press.target.closest("input")
  if (isTyping || press.ctrlKey || press.metaKey || press.altKey) return
  const search = document.querySelector("[data-search]")
  if (press.key === "/" && search) search.focus()
  else if (press.key === "j" && events) step(1)
  else if (press.key === "k" && events) step(-1)
  else return
  press.preventDefault()
})

byId("older")?.addEventListener("click", (click) => {
  if (click.ctrlKey || click.metaKey || click.shiftKey) return
  click.preventDefault()
  showOlder(click.currentTarget)
})

if (events?.dataset.live) follow()
refresh()
