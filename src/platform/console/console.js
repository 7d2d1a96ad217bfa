// The console: the conversations that hold results, and one conversation as a timeline. It uses only the documented
// platform API.
//
// Names and results are untrusted, so they are inserted only as text nodes. The service key is kept in one variable, not
// in storage, a URL or the history.

const API = 'platform/v1/conversations';
/** Maximum number of conversations in the list, which is the maximum of the API. */
const LIST_LIMIT = 100;
/** Pause between two requests for the same state, in ms. */
const REFRESH = 2000;
/** The service sends a comment on the event stream every 15 s. After this time without data (ms), the stream is lost. */
const SILENCE = 40000;
/** Pause before the event stream is opened again, in ms. It doubles with each failure, up to the maximum. */
const RETRY = { min: 500, max: 8000 };
/** Number of released items that a timeline shows at first, keeps as more arrive, and adds on demand. */
const RELEASED = { first: 25, kept: 200, more: 100 };
/** Maximum number of unreleased items in a timeline. */
const MAX_OPEN = 200;
/** Maximum number of characters of a result. */
const MAX_SHOWN = 500000;

const byId = (id) => document.getElementById(id);
const show = (element, isShown) => {
  element.hidden = !isShown;
};

/** Sets a text only if it changes, which keeps selections and does not interrupt screen readers. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A new element with properties, and with elements and texts inside. */
function make(tag, properties = {}, ...content) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...content);
  return element;
}

/** Whether an item is not released yet. */
const isOpen = ({ state }) => state === 'awaiting' || state === 'held';

/* Formats */

const counts = new Intl.NumberFormat('en');
const plural = (count, word) => `${counts.format(count)} ${word}${count === 1 ? '' : 's'}`;

/** Numbers with their units, which stay on one line. */
const joined = (...parts) => parts.join('\u00a0');

/** A duration that has ended: 340 ms, 2.41 s, 12.3 s, 1 m 03 s. */
function exactly(ms) {
  if (ms < 1000) return joined(Math.max(0, Math.round(ms)), 'ms');
  if (ms < 60000) return joined((ms / 1000).toFixed(ms < 10000 ? 2 : 1), 's');
  return running(ms);
}

/** A duration that still grows or shrinks, in whole seconds: 12 s, 1 m 03 s, 2 h 05 m, 1 d 03 h. */
function running(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  const two = (number) => String(number).padStart(2, '0');
  if (seconds < 60) return joined(seconds, 's');
  if (seconds < 3600) return joined(Math.floor(seconds / 60), 'm', two(seconds % 60), 's');
  if (seconds < 86400)
    return joined(Math.floor(seconds / 3600), 'h', two(Math.floor(seconds / 60) % 60), 'm');
  return joined(Math.floor(seconds / 86400), 'd', two(Math.floor(seconds / 3600) % 24), 'h');
}

const until = (deadline, now) => (deadline > now ? running(deadline - now + 999) : 'due');

function size(bytes) {
  if (bytes < 1024) return joined(bytes, 'B');
  const [unit, divisor] = bytes < 1024 ** 2 ? ['KiB', 1024] : ['MiB', 1024 ** 2];
  return joined((bytes / divisor).toFixed(1), unit);
}

const clock = (ms) => new Date(ms).toLocaleTimeString('en-GB');
const words = (state) => state.replace('_', ' ');
const itemName = (item) => item.name ?? item.kind;
const itemFacts = (item) => [item.name && item.kind, item.turnId].filter(Boolean).join(' · ');

/** JSON with indentation. Numbers keep their digits where the browser gives access to them. */
function indented(text, member) {
  const raw = (_, value, context) =>
    typeof value === 'number' && context?.source && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
  return JSON.stringify(JSON.parse(text, raw)[member], null, 2);
}

/* The service */

let key = '';
/** The service's time minus the browser's, in ms. */
let clockOffset = 0;
const now = () => Date.now() + clockOffset;

/** The `Date` header has whole seconds, so a difference of at most 2 s is ignored. */
function learnTime(date) {
  const offset = Date.parse(date) + 500 - Date.now();
  if (Number.isFinite(offset)) clockOffset = Math.abs(offset) > 2000 ? offset : 0;
}

class Refused extends Error {
  constructor(status, { code, message, traceId } = {}) {
    super([`${status} ${code ?? ''}`.trim(), message].filter(Boolean).join(': '));
    Object.assign(this, { status, code, traceId });
  }
}

/** Sends a request with the service key. Throws `Refused` if the service refuses it. */
async function request(path, { headers = {}, signal } = {}) {
  const response = await fetch(API + path, {
    headers: { ...headers, authorization: `Bearer ${key}` },
    signal,
    cache: 'no-store',
    credentials: 'omit',
    redirect: 'error',
  });
  learnTime(response.headers.get('date'));
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Refused(response.status, body.error);
}

const getJson = async (path, signal) => (await request(path, { signal })).json();

/** The events of a stream: `{ id, name, data }`. `onOpen` is called when the service has accepted the request. */
async function* readEvents(path, { lastEventId = '', signal, onOpen = () => {} }) {
  const silence = new AbortController();
  let timer;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), SILENCE);
  };
  heard();
  try {
    const headers = lastEventId ? { 'last-event-id': lastEventId } : {};
    const response = await request(path, { headers, signal: AbortSignal.any([signal, silence.signal]) });
    onOpen();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    let event = { id: '', name: '', data: [] };
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const line of lines) {
        if (line === '') {
          if (event.data.length > 0) yield { ...event, data: event.data.join('\n') };
          event = { id: '', name: '', data: [] };
          continue;
        }
        const [, field, text] = /^([^:]*):? ?([^]*)$/.exec(line.replace(/\r$/, ''));
        if (field === 'data') event.data.push(text);
        if (field === 'id') event.id = text;
        if (field === 'event') event.name = text;
      }
    }
  } finally {
    clearTimeout(timer);
    silence.abort();
  }
}

/* Elements of every view */

const connection = byId('connection');

function setConnection(text, className = '') {
  setText(connection, text);
  connection.className = `connection ${className}`;
}

function setProblem(text) {
  show(byId('problem'), text !== '');
  setText(byId('problem'), text);
}

/** Messages for screen readers. */
const announcements = new Set();

/** Announces a message to screen readers, together with others of the same second, at most the last five. */
function announce(text) {
  if (announcements.size === 0) {
    setTimeout(() => {
      setText(byId('announcement'), [...announcements].slice(-5).join('. '));
      announcements.clear();
    }, 1000);
  }
  announcements.add(text);
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, signal.aborted ? 0 : ms);
    signal.addEventListener('abort', done);
  });
}

/** Handles a failed request: shows the key form if the key is invalid, and otherwise the error. */
function failed(error, signal) {
  if (signal.aborted) return;
  if (error instanceof Refused && error.status === 401) {
    forget(error.message);
  } else {
    setConnection(error instanceof Refused ? 'Refused, trying again' : 'No connection, trying again', 'lost');
    setProblem(error instanceof Refused ? `The service refused the request. ${error.message}` : '');
  }
}

const traceUrl = document.querySelector('meta[name="trace-url"]').content;

/** A trace's id, as a link if `console.trace_url` is set. */
function traceLink(traceparent) {
  const id = traceparent?.split('-')[1] ?? '';
  if (!/^[0-9a-f]{32}$/.test(id)) return '';
  if (traceUrl === '') return id;
  return make('a', {
    href: traceUrl.replace('{traceId}', id),
    target: '_blank',
    rel: 'noopener noreferrer',
    textContent: id,
  });
}

/** Orders the rows of a table body like `items`. Reuses existing rows, which keeps the focus. */
function arrange(body, rows, items, keyOf, create) {
  const unused = new Set(rows.keys());
  let previous = null;
  for (const item of items) {
    const id = keyOf(item);
    unused.delete(id);
    let row = rows.get(id);
    if (!row) rows.set(id, (row = create(item)));
    for (const element of row.elements) {
      const next = previous ? previous.nextSibling : body.firstChild;
      if (next !== element) body.insertBefore(element, next);
      previous = element;
    }
    row.update(item);
  }
  for (const id of unused) {
    rows.get(id).elements.forEach((element) => element.remove());
    rows.delete(id);
  }
}

function makeCell(className, label) {
  const cell = make('td', { className });
  cell.setAttribute('role', 'cell');
  if (label) cell.dataset.label = label;
  return cell;
}

function makeRow(className, cells) {
  const row = make('tr', { className }, ...cells);
  row.setAttribute('role', 'row');
  return row;
}

/* The list of waiting conversations */

class List {
  constructor(signal) {
    this.signal = signal;
    this.rows = new Map();
    byId('list').tBodies[0].replaceChildren();
    this.run();
  }

  async run() {
    while (!this.signal.aborted) {
      const began = performance.now();
      if (!document.hidden) await this.refresh();
      await pause(Math.max(REFRESH, 5 * (performance.now() - began)), this.signal);
    }
  }

  async refresh() {
    try {
      const list = await getJson(`?waiting=true&limit=${LIST_LIMIT}`, this.signal);
      setConnection('Live');
      setProblem('');
      this.render(list);
    } catch (error) {
      failed(error, this.signal);
    }
  }

  render({ conversations, truncated }) {
    const count = conversations.length;
    show(byId('list'), count > 0);
    show(byId('list-empty'), count === 0);
    const number = counts.format(count);
    const isWhole = `${plural(count, 'conversation')}, longest first`;
    setText(
      byId('list-summary'),
      truncated ? `The ${number} that have waited longest; there may be more` : count > 0 ? isWhole : '',
    );
    document.title = `${count > 0 ? `(${number}${truncated ? '+' : ''}) ` : ''}Waiting conversations`;
    announce(
      count > 0 ? `${plural(count, 'conversation')}${truncated ? ' or more' : ''} waiting` : 'No conversation is waiting.',
    );
    const create = (waiting) => this.create(waiting);
    arrange(byId('list').tBodies[0], this.rows, conversations, (waiting) => waiting.conversationId, create);
    show(byId('list-view'), true);
    this.tick();
  }

  create({ conversationId }) {
    const link = make('a', { href: `#${conversationId}`, className: 'mono', textContent: conversationId });
    const [id, whom] = [makeCell(''), makeCell('')];
    const [since, results, bytes, deadline] = [['held for'], ['results'], ['size'], ['times out in']].map(
      ([label]) => makeCell('number', label),
    );
    id.append(link);
    const [sequence, name, facts] = ['sequence', 'name', 'sub'].map((className) =>
      make('span', { className }),
    );
    whom.append(sequence, ' ', name, ' ', facts);
    const row = {
      elements: [makeRow('row', [id, whom, since, results, bytes, deadline])],
      update: (waiting) => {
        row.waiting = waiting;
        const { waitingFor: item, held } = waiting;
        setText(sequence, `#${item.sequence}`);
        setText(name, itemName(item));
        setText(facts, itemFacts(item));
        setText(results, counts.format(held.count));
        setText(bytes, size(held.bytes));
      },
      tick: (time) => {
        const { heartbeatDeadline, deadline: last } = row.waiting.waitingFor;
        const due = Date.parse(heartbeatDeadline ?? last);
        setText(since, running(time - Date.parse(row.waiting.since)));
        setText(deadline, until(due, time));
        deadline.classList.toggle('late', due <= time);
      },
    };
    return row;
  }

  tick() {
    const time = now();
    for (const row of this.rows.values()) row.tick(time);
  }
}

/* One conversation */

class Conversation {
  constructor(id, signal) {
    this.id = id;
    this.signal = signal;
    this.path = `/${encodeURIComponent(id)}`;
    this.rows = new Map();
    this.view = null;
    this.isStreaming = false;
    this.startedAt = now();
    this.forgetItems();
    byId('timeline').tBodies[0].replaceChildren();
    show(byId('timeline'), false);
    setText(byId('conversation-id'), id);
    setText(byId('conversation-facts'), '');
    show(byId('blocker'), false);
    byId('span').onchange = () => this.tick();
    byId('earlier').onclick = () => this.showEarlier();
    document.title = id;
    this.run();
  }

  forgetItems() {
    /** By sequence. Released items are kept without their results. */
    this.items = new Map();
    this.firstShown = 1;
    this.keptReleased = RELEASED.kept;
    this.lastEventId = '';
  }

  async run() {
    this.retry = RETRY.min;
    while (!this.signal.aborted) {
      try {
        if (this.lastEventId === '') await this.start();
        if (document.hidden || (this.view.state === 'ended' && this.isComplete())) {
          await this.look();
          continue;
        }
        await this.follow();
        await this.inspect();
        if (this.view.state === 'ended') continue;
        setConnection('Reconnecting', 'lost');
      } catch (error) {
        failed(error, this.signal);
        // The conversation was opened again, or its channel has lost data. Start over.
        if (error instanceof Refused && error.status === 400) this.forgetItems();
      }
      await pause(this.retry, this.signal);
      this.retry = Math.min(2 * this.retry, RETRY.max);
    }
  }

  /** Reads the state of the conversation, and sets after which event the stream starts. */
  async start() {
    await this.inspect();
    const after = Math.max(0, this.released() - RELEASED.first);
    this.firstShown = after + 1;
    this.lastEventId = String(after);
    show(byId('conversation-view'), true);
  }

  /** The sequence of the last item on the channel. An item that is overdue or was dropped is not on it. */
  released() {
    const { nextSequence, awaiting, held, droppedAwaiting = 0, droppedHeld = 0 } = this.view;
    return nextSequence - 1 - awaiting.length - held.length - droppedAwaiting - droppedHeld;
  }

  /** Whether all released items are shown. */
  isComplete() {
    return Number(this.lastEventId.split('-').pop()) >= this.released();
  }

  async look() {
    setConnection(this.view.state === 'ended' ? 'Ended' : 'Paused', 'idle');
    await pause(REFRESH, this.signal);
    if (!document.hidden && !this.signal.aborted) await this.inspect();
  }

  /** Follows the event stream until it ends or the page is hidden, and requests inspections at the same time. */
  async follow() {
    const stop = new AbortController();
    const signal = AbortSignal.any([this.signal, stop.signal]);
    const inspecting = this.keepInspecting(signal, stop);
    const hide = () => {
      if (document.hidden) stop.abort();
    };
    document.addEventListener('visibilitychange', hide, { signal });
    try {
      // A sequence alone is a valid cursor: the stream starts after it.
      const isFirst = !this.lastEventId.includes('-');
      const path = `${this.path}/events${isFirst ? `?from=${this.lastEventId}` : ''}`;
      const onOpen = () => {
        this.retry = RETRY.min;
        this.isStreaming = true;
        this.isLive();
      };
      for await (const event of readEvents(path, {
        lastEventId: isFirst ? '' : this.lastEventId,
        signal,
        onOpen,
      })) {
        this.take(event);
      }
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    } finally {
      this.isStreaming = false;
      stop.abort();
      await inspecting;
    }
  }

  isLive() {
    setConnection('Live');
    setProblem('');
  }

  async keepInspecting(signal, stop) {
    while (!signal.aborted) {
      const began = performance.now();
      this.wake = new AbortController();
      try {
        await this.inspect(signal);
        if (this.isStreaming) this.isLive();
      } catch (error) {
        failed(error, signal);
        if (error instanceof Refused && error.status === 404) stop.abort();
      }
      // Delayed, so that a series of released events causes one inspection.
      const woken = AbortSignal.any([signal, this.wake.signal]);
      await pause(Math.max(REFRESH, 5 * (performance.now() - began)), woken);
      if (this.wake.signal.aborted) await pause(150, signal);
    }
  }

  async inspect(signal = this.signal) {
    const view = await getJson(this.path, signal);
    if (this.view && this.view.openedAt !== view.openedAt) this.forgetItems();
    this.view = view;
    const open = new Set();
    for (const [state, items] of [
      ['awaiting', view.awaiting],
      ['held', view.held],
    ]) {
      for (const item of items) {
        open.add(item.sequence);
        const known = this.items.get(item.sequence);
        if (known?.state === 'released' || item.sequence < this.firstShown) continue;
        this.items.set(item.sequence, { ...this.fromApi(item, state), progress: known?.progress });
      }
    }
    // In an ended conversation, items that are neither in the inspection nor on the channel were dropped.
    for (const item of this.items.values()) {
      if (view.state === 'ended' && item.state !== 'released' && !open.has(item.sequence))
        item.state = 'dropped';
    }
    this.render();
  }

  /** An item of the inspection or of an envelope, with times in ms. */
  fromApi(item, state) {
    const times = {};
    for (const field of [
      'issuedAt',
      'receivedAt',
      'releasedAt',
      'deadline',
      'lastHeartbeatAt',
      'heartbeatDeadline',
    ]) {
      if (item[field]) times[field] = Date.parse(item[field]);
    }
    const { result, error, ...facts } = item;
    return { ...facts, ...times, state };
  }

  take({ id, name, data }) {
    if (name === 'progress') return this.takeProgress(JSON.parse(data));
    if (name === '') {
      const item = this.release(JSON.parse(data));
      this.lastEventId = id;
      if (item.releasedAt >= this.startedAt)
        announce(`${item.sequence}, ${itemName(item)}: ${words(item.outcome)}`);
      this.renderSoon();
    }
    this.wake?.abort();
  }

  /** Adds the item of an envelope, which has no deadline. */
  release(envelope) {
    const item = this.fromApi(envelope, 'released');
    item.deadline = this.items.get(item.sequence)?.deadline;
    this.items.set(item.sequence, item);
    return item;
  }

  takeProgress({ sequence, message, data }) {
    const item = this.items.get(sequence);
    if (item?.state !== 'awaiting') return;
    item.progress = message ?? JSON.stringify(data);
    this.renderSoon();
  }

  async showEarlier() {
    const after = Math.max(0, this.firstShown - 1 - RELEASED.more);
    const last = this.firstShown - 1;
    byId('earlier').disabled = true;
    try {
      await this.read(after, last, (event) => this.release(JSON.parse(event.data)));
      this.firstShown = after + 1;
      this.keptReleased += RELEASED.more;
      this.render();
    } catch (error) {
      if (error instanceof Refused && error.status === 401) failed(error, this.signal);
      else if (!this.signal.aborted) setProblem(`The earlier work items could not be read. ${error.message}`);
    } finally {
      byId('earlier').disabled = false;
    }
  }

  /** Reads the events after the sequence `after` up to the sequence `last`. Both are on the channel. */
  async read(after, last, onEvent) {
    for await (const event of readEvents(`${this.path}/events?from=${after}`, { signal: this.signal })) {
      if (event.name !== '') continue;
      onEvent(event);
      if (Number(event.id.split('-').pop()) >= last) return;
    }
    throw new Error('the event stream ended early');
  }

  /** Renders once for all events that arrive together. */
  renderSoon() {
    this.rendering ??= requestAnimationFrame(() => {
      this.rendering = undefined;
      if (!this.signal.aborted) this.render();
    });
  }

  render() {
    if (!this.view) return;
    const all = [...this.items.values()].filter((item) => item.sequence >= this.firstShown);
    all.sort((one, other) => one.sequence - other.sequence);
    // Unreleased items come after all released ones.
    const open = all.filter((item) => item.state !== 'released');
    this.forgetReleased(all.splice(0, all.length - open.length - this.keptReleased));
    const held = open.filter((item) => item.state === 'held');
    // An event can arrive before the inspection that contains its item.
    this.blocker = this.view.state === 'live' && open[0]?.state === 'awaiting' ? open[0] : undefined;
    this.held = held;
    this.lastHeld = held.at(-1)?.sequence ?? 0;
    const tooMany = open.length - MAX_OPEN;
    this.shown = tooMany > 0 ? all.filter((item) => item.sequence <= open[MAX_OPEN - 1].sequence) : all;
    show(byId('more'), tooMany > 0);
    setText(byId('more'), `${plural(tooMany, 'later item')} not shown.`);
    show(byId('earlier-line'), this.firstShown > 1);
    show(byId('timeline'), all.length > 0);
    show(byId('legend'), all.length > 0);
    show(byId('timeline-empty'), all.length === 0);
    arrange(
      byId('timeline').tBodies[0],
      this.rows,
      this.shown,
      (item) => item.sequence,
      (item) => this.create(item),
    );
    this.tick();
  }

  /** Forgets released items. They are still on the channel, and can be shown again as earlier items. */
  forgetReleased(items) {
    for (const { sequence } of items) {
      this.items.delete(sequence);
      this.firstShown = sequence + 1;
    }
  }

  renderFacts(time) {
    const view = this.view;
    const facts = [
      view.state === 'ended' ? `ended at ${clock(Date.parse(view.endedAt))}` : 'live',
      `opened at ${clock(Date.parse(view.openedAt))}`,
      `${plural(view.nextSequence - 1, 'item')} issued`,
    ];
    if (view.reason) facts.push(`reason: ${view.reason}`);
    const element = byId('conversation-facts');
    const text = facts.join(', ');
    if (element.dataset.text !== text) {
      const trace = traceLink(view.traceparent);
      element.replaceChildren(text, ...(trace ? [', trace ', trace] : []));
      element.dataset.text = text;
    }
    this.renderBlocker(time);
  }

  renderBlocker(time) {
    const { blocker, held, view } = this;
    const panel = byId('blocker');
    show(panel, true);
    const blocks = blocker !== undefined && held.length > 0;
    panel.classList.toggle('blocking', blocks);
    const bytes = held.reduce((sum, item) => sum + item.bytes, 0);
    let title = ['Nothing is awaited.'];
    let facts = '';
    if (view.state === 'ended') {
      title = ['The conversation has ended.'];
      facts = `${plural(view.droppedAwaiting, 'awaiting item')} and ${plural(view.droppedHeld, 'held result')} dropped.`;
    } else if (blocker) {
      const name = make('strong', { textContent: `#${blocker.sequence} ${itemName(blocker)}` });
      title = blocks
        ? [name, ` holds back ${plural(held.length, 'result')}, ${size(bytes)}`]
        : ['Nothing is held. Next: ', name];
      facts = [
        itemFacts(blocker),
        `awaited for ${running(time - blocker.issuedAt)}`,
        blocker.deadline > time ? `deadline in ${until(blocker.deadline, time)}` : 'the deadline has passed',
        held[0] && `first result held for ${running(time - held[0].receivedAt)}`,
      ]
        .filter(Boolean)
        .join(' · ');
    }
    const element = byId('blocker-title');
    const text = title.map((part) => part.textContent ?? part).join('');
    if (element.textContent !== text) element.replaceChildren(...title);
    setText(byId('blocker-facts'), facts);
    setText(byId('blocker-progress'), blocker?.progress ? `“${blocker.progress}”` : '');
    if (blocks && this.announced !== blocker.sequence)
      announce(`Waiting for ${blocker.sequence}, ${itemName(blocker)}`);
    this.announced = blocks ? blocker.sequence : 0;
  }

  create({ sequence }) {
    const cells = {
      sequence: makeCell('number sequence'),
      item: makeCell('item'),
      state: makeCell('state'),
      lane: makeCell('lane'),
      awaited: makeCell('number awaited', 'awaited'),
      held: makeCell('number held', 'held'),
      deadline: makeCell('number deadline', 'deadline in'),
      action: makeCell('action'),
    };
    const [name, facts, state, note, word, which] = ['name', 'sub', '', 'sub', '', 'hidden'].map(
      (className) => make('span', { className }),
    );
    const [lane, awaited, held] = ['', 'bar-awaited', 'bar-held'].map((className) =>
      make('div', { className }),
    );
    const button = make('button', { type: 'button' }, word, which);
    cells.sequence.append(sequence);
    cells.item.append(name, ' ', facts);
    cells.state.append(state, ' ', note);
    cells.lane.append(lane);
    lane.append(awaited, held);
    lane.ariaHidden = 'true';
    cells.action.append(button);
    which.append(` of ${sequence}`);
    button.ariaExpanded = 'false';
    const row = {
      elements: [makeRow('row', Object.values(cells))],
      cells,
      texts: { name, facts, state, note, word },
      lane,
      bars: { awaited, held },
      update: (item) => this.updateRow(row, item),
      tick: (time, span) => tickRow(row, time, span),
    };
    button.onclick = () => this.toggle(row, button);
    return row;
  }

  updateRow(row, item) {
    const { cells, texts } = row;
    row.item = item;
    row.elements[0].className = `row ${this.rowClass(item)}`;
    setText(texts.name, itemName(item));
    setText(texts.facts, itemFacts(item));
    cells.item.title = [itemName(item), itemFacts(item)].filter(Boolean).join(' · ');
    const [state, note] = this.stateOf(item);
    setText(texts.state, state);
    setText(texts.note, note);
    cells.state.title = [state, note].filter(Boolean).join(', ');
    const onChannel = item.state === 'released' ? item.outcome : '';
    setText(texts.word, { succeeded: 'Result', failed: 'Error' }[onChannel] ?? 'Details');
    row.renderDetails?.();
  }

  rowClass(item) {
    const classes = [item.state === 'released' ? item.outcome : item.state];
    if (
      this.blocker &&
      this.held.length > 0 &&
      item.sequence >= this.blocker.sequence &&
      item.sequence <= this.lastHeld
    ) {
      classes.push('chained');
      if (item === this.blocker) classes.push('first', 'blocking');
      if (item.state === 'held') classes.push('waits');
      if (item.sequence === this.lastHeld) classes.push('last');
    }
    return classes.join(' ');
  }

  /** The state in words, with its details. */
  stateOf(item) {
    if (item.state === 'released') return [words(item.outcome), ''];
    if (item.state === 'held')
      return [this.blocker ? `held, waits for ${this.blocker.sequence}` : 'held', words(item.outcome)];
    if (item === this.blocker && this.held.length > 0)
      return ['awaiting', `holds back ${counts.format(this.held.length)}`];
    return [item.state, item.progress ?? ''];
  }

  tick() {
    if (!this.view) return;
    const time = now();
    this.renderFacts(time);
    const span = this.span(time);
    drawAxis(span);
    for (const row of this.rows.values()) row.tick(time, span);
  }

  /** The time span of the bars. It grows while an item is open. */
  span(time) {
    const chosen = byId('span').value;
    const latest = this.shown.map((item) => item.releasedAt ?? item.receivedAt ?? item.issuedAt);
    const to = this.shown.some(isOpen) ? time : Math.max(...latest, 0);
    if (chosen !== 'auto' && chosen !== 'all') return { from: to - Number(chosen), to };
    const covered =
      chosen === 'all'
        ? this.shown
        : this.shown.filter((item, index) => isOpen(item) || index >= this.shown.length - 12);
    return { from: Math.min(...covered.map((item) => item.issuedAt), to - 1000), to };
  }

  /* Details on demand */

  toggle(row, button) {
    const isShown = row.elements.length > 1;
    button.ariaExpanded = String(!isShown);
    if (isShown) {
      row.elements.pop().remove();
      row.renderDetails = undefined;
      return;
    }
    const cell = makeCell('');
    cell.colSpan = 8;
    const facts = make('dl', { className: 'facts' });
    const result = make('div', { className: 'result' });
    cell.append(facts, result);
    const details = makeRow('details', [cell]);
    row.elements.push(details);
    row.elements[0].after(details);
    row.renderDetails = () => {
      if (row.shownState === row.item.state && facts.hasChildNodes()) return;
      row.shownState = row.item.state;
      this.renderItemFacts(facts, row.item);
      this.renderResult(result, row.item);
    };
    row.renderDetails();
  }

  renderItemFacts(element, item) {
    const at = (ms) => (ms === undefined ? undefined : new Date(ms).toISOString());
    const facts = [
      ['Work item', item.workItemId],
      ['Kind', item.kind],
      ['Name', item.name],
      ['Turn', item.turnId],
      ['Tool call', item.toolCallId],
      ['Issued', at(item.issuedAt)],
      ['Deadline', at(item.deadline)],
      ['Heartbeat', at(item.lastHeartbeatAt)],
      ['Next due', at(item.heartbeatDeadline)],
      ['Outcome', item.outcome && words(item.outcome)],
      ['Reason', item.reason],
      ['Received', at(item.receivedAt)],
      ['Released', at(item.releasedAt)],
      ['Size', item.state === 'held' ? size(item.bytes) : undefined],
      ['Request', item.requestId],
      ['Trace', traceLink(item.traceparent)],
    ];
    const shown = facts.filter(([, value]) => value);
    element.replaceChildren(
      ...shown.map(([term, value]) =>
        make('div', {}, make('dt', { textContent: term }), make('dd', {}, value)),
      ),
    );
  }

  /** Reads the result from the channel on demand. It is not kept. */
  async renderResult(element, item) {
    const note = (text) => element.replaceChildren(make('p', { className: 'muted', textContent: text }));
    if (item.state === 'held') return note('Its result can be read when it is released.');
    if (item.state !== 'released') return element.replaceChildren();
    const member = { succeeded: 'result', failed: 'error' }[item.outcome];
    if (!member) return element.replaceChildren();
    note('Reading…');
    try {
      let text = '';
      await this.read(item.sequence - 1, item.sequence, (event) => {
        text = indented(event.data, member);
      });
      const heading = make('h2', { textContent: member === 'result' ? 'Result' : 'Error' });
      const body = make('pre', { tabIndex: 0, textContent: text.slice(0, MAX_SHOWN) });
      body.setAttribute('role', 'region');
      body.setAttribute('aria-label', `${heading.textContent} of ${item.sequence}`);
      element.replaceChildren(heading, body);
      if (text.length > MAX_SHOWN)
        element.append(`The first ${counts.format(MAX_SHOWN)} of ${counts.format(text.length)} characters.`);
    } catch (error) {
      if (error instanceof Refused && error.status === 401) failed(error, this.signal);
      else note(`The result cannot be read: ${error.message}`);
    }
  }
}

/** The times of a row. Some still grow or shrink. */
function tickRow({ item, cells, lane, bars }, time, span) {
  const { state, issuedAt, receivedAt, releasedAt, deadline } = item;
  const settledAt = receivedAt ?? (state === 'awaiting' ? time : issuedAt);
  const heldUntil = releasedAt ?? (state === 'held' ? time : settledAt);
  const awaitedMs = settledAt - issuedAt;
  const heldMs = heldUntil - settledAt;
  setText(cells.awaited, state === 'dropped' ? '' : receivedAt ? exactly(awaitedMs) : running(awaitedMs));
  setText(cells.held, state === 'held' ? running(heldMs) : heldMs > 0 ? exactly(heldMs) : '');
  setText(cells.deadline, state === 'awaiting' ? until(deadline, time) : '');
  cells.deadline.classList.toggle('late', state === 'awaiting' && deadline <= time);
  place(bars.awaited, span, issuedAt, settledAt);
  place(bars.held, span, settledAt, heldUntil);
  if (heldMs === 0) show(bars.held, false);
  lane.classList.toggle('before', !isOpen(item) && heldUntil < span.from);
}

/** Positions a bar, or hides it if it is outside the time span. */
function place(bar, { from, to }, start, end) {
  const position = (ms) => Math.min(1, Math.max(0, (ms - from) / (to - from)));
  const isInside = end >= from && start <= to;
  show(bar, isInside);
  if (!isInside) return;
  bar.style.left = `${100 * position(start)}%`;
  bar.style.width = `${100 * (position(end) - position(start))}%`;
}

/** Steps of the time axis, in seconds. */
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];

function drawAxis({ from, to }) {
  const axis = byId('axis');
  const most = Math.max(1, Math.floor(axis.clientWidth / 90));
  const step = 1000 * (STEPS.find((seconds) => (to - from) / (1000 * seconds) <= most) ?? 86400);
  const ticks = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) ticks.push(at);
  const hasRoom = (at) => ((to - at) / (to - from)) * axis.clientWidth > 60;
  while (axis.children.length < ticks.length) axis.append(make('span'));
  while (axis.children.length > ticks.length) axis.lastChild.remove();
  const percent = (at) => `${((100 * (at - from)) / (to - from)).toFixed(3)}%`;
  ticks.forEach((at, index) => {
    axis.children[index].style.left = percent(at);
    setText(axis.children[index], hasRoom(at) ? clock(at) : '');
  });
  const lines = ticks.map(
    (at) =>
      `transparent ${percent(at)}, var(--rule) ${percent(at)}, var(--rule) calc(${percent(at)} + 1px), transparent calc(${percent(at)} + 1px)`,
  );
  byId('timeline').style.setProperty(
    '--grid',
    lines.length > 0 ? `linear-gradient(90deg, ${lines.join(', ')})` : 'none',
  );
}

/* Selection of the view */

let view = null;
let leave = new AbortController();

function conversationInAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return '';
  }
}

/** Shows the conversation whose id is in the address, or the list. */
function navigate() {
  leave.abort();
  leave = new AbortController();
  view = null;
  setConnection('');
  setProblem('');
  for (const id of ['key-view', 'list-view', 'conversation-view']) show(byId(id), false);
  for (const id of ['open', 'forget']) show(byId(id), key !== '');
  const id = conversationInAddress();
  if (key === '') {
    document.title = 'callback-ingress console';
    show(byId('key-view'), true);
    byId('key').focus();
  } else if (id === '') {
    view = new List(leave.signal);
  } else {
    view = new Conversation(id, leave.signal);
  }
}

function forget(reason = '') {
  key = '';
  navigate();
  setProblem(reason);
}

byId('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const entered = byId('key').value.trim();
  if (!/^[\x21-\x7e]+$/.test(entered))
    return setProblem('A service key consists of visible ASCII characters.');
  byId('key').value = '';
  key = entered;
  navigate();
});
byId('open').addEventListener('submit', (event) => {
  event.preventDefault();
  const id = byId('open-id').value.trim();
  if (id !== '') location.hash = encodeURIComponent(id);
});
byId('forget').addEventListener('click', () => forget());
window.addEventListener('hashchange', navigate);
// A page in the browser's back/forward cache must not keep the key.
window.addEventListener('pagehide', () => forget());
setInterval(() => {
  if (!document.hidden) view?.tick();
}, 1000);
navigate();
