// Workers of the two queues from npm, each through its own API.  Speaks as
// ../driver.c does: a command on stdin, a line of JSON for each.
//
//	queues.js NAME DATABASE BATCH CLIENTS INTERVAL
//
// A row is a job with a key, its payload the user, the cursor and how many
// cycles were made; to complete it is to add it again under its key, with a new
// cursor, due after the interval in seconds, and to complete the job.
import { createHash } from 'node:crypto';
import { createInterface } from 'node:readline';
import { setTimeout } from 'node:timers/promises';
import pg from 'pg';

const [name, database, ...numbers] = process.argv.slice(2);
const [batch, clients, interval] = numbers.map(Number);
const connection = { database, application_name: 'worker', idleTimeoutMillis: 0 };

let number = 0;
const cursor = () => `CP${createHash('md5').update(`${name} ${number++}`).digest('hex')}GAU=`;
const later = () => new Date(Date.now() + (0.9 + 0.05 * Math.random()) * interval * 1000);
const again = ({ user_id, cycles }) => ({ user_id, cursor: cursor(), cycles: cycles + 1 });

// How long the statements took: those that claim, and the others.
const times = { claim: [], complete: [] };
const query = pg.Client.prototype.query;
pg.Client.prototype.query = function timed(config, ...args) {
	const text = typeof config === 'string' ? config : config?.text ?? '';
	const start = performance.now();
	const note = () => times[/skip locked/i.test(text) ? 'claim' : 'complete'].push((performance.now() - start) / 1000);
	const callback = args.at(-1);
	if (typeof callback === 'function')
		args[args.length - 1] = (...results) => { note(); callback(...results); };
	const result = query.call(this, config, ...args);
	result?.then?.(note, () => {});
	return result;
};

// What a worker has may be had by nobody else.
const held = new Set();
let twice = 0;
const take = id => { if (held.has(id)) twice++; held.add(id); };
const give = id => { held.delete(id); idleSince = Date.now(); };

// Who waits for rows that are not there would wait for ever.
let idleSince = Infinity;
setInterval(() => {
	if (Date.now() - idleSince > 30000)
		throw new Error('nothing is due');
}, 1000).unref();

// Rows of the view, a part of them at a time, as jobs.
async function load(add) {
	const client = new pg.Client(connection);
	await client.connect();
	await client.query('BEGIN');
	await client.query('DECLARE rows CURSOR FOR SELECT user_id, cursor, due_at FROM bench.rows');
	for (;;) {
		const { rows } = await client.query('FETCH 10000 FROM rows');
		if (rows.length === 0)
			break;
		await add(rows);
	}
	await client.end();
}

async function graphileWorker() {
	const { makeWorkerUtils, run, Logger } = await import('graphile-worker');
	const pgPool = new pg.Pool({ ...connection, max: clients + 5 });
	const fail = error => { throw error; };
	pgPool.on('error', fail);
	pgPool.on('connect', client => client.on('error', fail));
	const logger = new Logger(() => () => {});
	const utils = await makeWorkerUtils({ pgPool, logger });
	await utils.migrate();
	const spec = (payload, runAt) => ({ identifier: 'sync', payload, jobKey: payload.user_id, runAt });

	// Jobs that end at the same time are added again by one call.
	let waiting = [];
	const flush = async () => {
		const these = waiting;
		waiting = [];
		try {
			await utils.addJobs(these.map(w => w.spec));
			these.forEach(w => w.resolve());
		} catch (error) {
			these.forEach(w => w.reject(error));
		}
	};
	const readd = s => new Promise((resolve, reject) => {
		waiting.push({ spec: s, resolve, reject });
		if (waiting.length === batch)
			flush();
		else if (waiting.length === 1)
			setTimeout(1).then(() => waiting.length && flush());
	});

	return {
		load: () => load(rows => utils.addJobs(
			rows.map(r => spec({ user_id: r.user_id, cursor: r.cursor, cycles: 0 }, r.due_at)))),
		async go(n) {
			let done = 0;
			let runner;
			const enough = new Promise(resolve => {
				runner = run({
					pgPool, logger, noHandleSignals: true, crontab: '',
					taskList: {
						async sync(payload) {
							take(payload.user_id);
							const next = spec(again(payload), later());
							await (batch === 1 ? utils.addJob('sync', next.payload, next) : readd(next));
							give(payload.user_id);
							if (++done >= n)
								resolve();
						},
					},
					preset: {
						worker: {
							concurrentJobs: batch * clients,
							...(batch === 1 ? {} : { localQueue: { size: batch * clients }, completeJobBatchDelay: 0 }),
						},
					},
				});
			});
			await enough;
			await (await runner).stop();
			return done;
		},
	};
}

async function pgBoss() {
	const { PgBoss } = await import('pg-boss');
	const boss = new PgBoss({ ...connection, max: clients, schedule: false, supervise: false });
	boss.on('error', error => { throw error; });
	await boss.start();
	await boss.createQueue('sync', { policy: 'short', partition: true });
	const job = (data, startAfter) => ({ data, singletonKey: data.user_id, startAfter });

	return {
		load: () => load(rows => boss.insert('sync',
			rows.map(r => job({ user_id: r.user_id, cursor: r.cursor, cycles: 0 }, r.due_at)))),
		async go(n) {
			let done = 0;
			const worker = async () => {
				while (done < n) {
					const jobs = await boss.fetch('sync', { batchSize: batch });
					if (jobs.length === 0) {
						await setTimeout(1);
						continue;
					}
					jobs.forEach(j => take(j.data.user_id));
					const next = jobs.map(j => job(again(j.data), later()));
					await boss.insert('sync', next);
					await boss.complete('sync', jobs.map(j => j.id));
					jobs.forEach(j => give(j.data.user_id));
					done += jobs.length;
				}
			};
			await Promise.all(Array.from({ length: clients }, worker));
			return done;
		},
	};
}

const queue = await { d: graphileWorker, e: pgBoss }[name]();
const say = what => process.stdout.write(`${JSON.stringify(what)}\n`);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

say({ started: 1 });
for (;;) {
	const { value: line, done: end } = await lines.next();
	if (end)
		process.exit(0);
	const [command, n] = line.split(' ');
	if (command === 'load') {
		await queue.load();
		say({ loaded: 1 });
		continue;
	}
	times.claim = [];
	times.complete = [];
	twice = 0;
	say({ ready: 1 });
	await lines.next();
	const start = performance.now();
	idleSince = Date.now();
	const cycles = await queue.go(Number(n));
	idleSince = Infinity;
	const answer = {
		seconds: (performance.now() - start) / 1000, cycles, claims: times.claim.length,
		empty: 0, retries: 0, lost: 0, double: twice,
	};
	for (const [kind, seconds] of Object.entries(times)) {
		if (seconds.length === 0)
			continue;
		seconds.sort((a, b) => a - b);
		answer[`${kind}_p50`] = seconds[Math.floor(seconds.length / 2)];
		answer[`${kind}_p99`] = seconds[Math.floor(seconds.length * 0.99)];
		answer[`${kind}_max`] = seconds.at(-1);
	}
	say(answer);
}
