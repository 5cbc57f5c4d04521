// Shows the API as openapi.json describes it, and tries it on this server.
'use strict';

// What is shown of an answer; larger ones are for programs.
const SHOWN_CHARACTERS_MAX = 200000;

const find = (node, selector) => node.querySelector(selector);

function resolve(openapi, value) {
  let found = value;
  while (found && found.$ref) {
    found = found.$ref.slice(2).split('/').reduce((node, key) => node && node[key], openapi);
  }
  return found;
}

// Names and types of an answer, a few levels deep.
function shape(openapi, schema, depth) {
  const found = resolve(openapi, schema);
  if (!found || typeof found !== 'object') return 'any';
  const options = found.oneOf || found.anyOf;
  if (options) {
    if (options.every((option) => 'const' in option)) return options.map((option) => option.const).join(' | ');
    return options.map((option) => shape(openapi, option, depth)).find((option) => option !== 'null') || 'any';
  }
  if (found.properties) {
    if (depth === 0) return '{...}';
    const members = {};
    for (const [name, member] of Object.entries(found.properties)) members[name] = shape(openapi, member, depth - 1);
    return members;
  }
  if (found.items) return [shape(openapi, found.items, depth)];
  if (found.additionalProperties) return { '...': shape(openapi, found.additionalProperties, depth) };
  if (found.enum) return found.enum.join(' | ');
  return [].concat(found.type || 'any').join(' or ');
}

function field(parameter) {
  const label = document.createElement('label');
  const schema = parameter.schema;
  const input = document.createElement(schema.enum ? 'select' : 'input');
  for (const value of schema.enum ? ['', ...schema.enum] : []) {
    input.append(new Option(value, value));
  }
  if (schema.type === 'integer') {
    input.inputMode = 'numeric';
    input.placeholder = schema.default;
  }
  const examples = [schema, ...(schema.anyOf || [])].flatMap((option) => option.examples || []);
  if (examples.length) input.placeholder = examples.join('  ');
  input.name = parameter.name;
  input.required = Boolean(parameter.required);
  input.autocomplete = 'off';
  input.spellcheck = false;
  const hint = document.createElement('span');
  hint.className = 'hint';
  hint.textContent = hint.dataset.about = parameter.description;
  label.append(parameter.name + (parameter.required ? ' *' : ''), input, hint);
  return label;
}

function address(path, parameters, form) {
  const query = new URLSearchParams();
  let filled = path;
  for (const parameter of parameters) {
    const value = form.elements[parameter.name].value.trim();
    if (parameter.in === 'path') filled = filled.replace(`{${parameter.name}}`, encodeURIComponent(value));
    else if (value) query.set(parameter.name, value);
  }
  return query.size ? `${filled}?${query}` : filled;
}

// Marks the fields that a problem document names.
function mark(form, problem) {
  const faults = new Map(((problem && problem.errors) || []).map((fault) => [fault.parameter, fault.reason]));
  for (const input of form.querySelectorAll('input, select')) {
    const hint = find(input.parentNode, '.hint');
    hint.textContent = faults.get(input.name) || hint.dataset.about;
    hint.classList.toggle('wrong', faults.has(input.name));
    input.setAttribute('aria-invalid', faults.has(input.name));
  }
}

async function send(details, form, url) {
  const answer = find(details, '.answer');
  const status = find(answer, '.status');
  const next = find(answer, '.next');
  answer.hidden = false;
  next.hidden = true;
  status.className = 'status';
  status.textContent = 'asking';
  find(answer, '.headers').textContent = find(answer, '.body').textContent = '';
  let body = null;
  try {
    const began = performance.now();
    const response = await fetch(url, { cache: 'no-store' });
    const text = await response.text();
    status.textContent = `${response.status} after ${Math.round(performance.now() - began)} ms, ${text.length} characters`;
    status.classList.toggle('wrong', !response.ok);
    find(answer, '.headers').textContent = [...response.headers].map((header) => header.join(': ')).join('\n');
    body = JSON.parse(text);
    const pretty = JSON.stringify(body, null, 2);
    const cut = pretty.length > SHOWN_CHARACTERS_MAX ? '\n(cut)' : '';
    find(answer, '.body').textContent = pretty.slice(0, SHOWN_CHARACTERS_MAX) + cut;
    mark(form, response.ok ? null : body);
  } catch (error) {
    status.textContent = `no answer: ${error.message}`;
    status.classList.add('wrong');
  }
  if (body && body.next_cursor) {
    next.hidden = false;
    next.onclick = () => {
      form.elements.cursor.value = body.next_cursor;
      form.requestSubmit();
    };
  }
}

function show(openapi, path, operation) {
  const details = find(document, '#operation').content.cloneNode(true).firstElementChild;
  const form = find(details, 'form');
  const parameters = operation.parameters.map((one) => resolve(openapi, one)).filter((one) => one.in !== 'header');
  details.id = operation.operationId;
  find(details, '.path').textContent = path;
  find(details, '.about').textContent = operation.summary;
  find(details, '.parameters').append(...parameters.map(field));
  const schema = operation.responses['200'].content['application/json'].schema;
  find(details, '.shape pre').textContent = JSON.stringify(shape(openapi, schema, 4), null, 2);
  const update = () => { find(details, '.url').textContent = address(path, parameters, form); };
  form.addEventListener('input', update);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    update();
    send(details, form, address(path, parameters, form));
  });
  update();
  return details;
}

async function start() {
  const operations = find(document, '#operations');
  try {
    const openapi = await (await fetch('openapi.json')).json();
    find(document, '#title').textContent = `${openapi.info.title} API, version ${openapi.info.version}`;
    find(document, '#about').textContent = openapi.info.description;
    operations.replaceChildren(
      ...Object.entries(openapi.paths).map(([path, item]) => show(openapi, path, item.get)));
  } catch (error) {
    operations.textContent = `openapi.json cannot be read: ${error.message}`;
  }
}

start();
