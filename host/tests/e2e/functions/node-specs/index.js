// Ten seconds of loading, or LOAD_MS milliseconds.
await new Promise((resolve) => setTimeout(resolve, Number(process.env.LOAD_MS ?? 10000)));

export default async ({ res }) =>
    res.json({ cpus: process.env.OPEN_RUNTIMES_CPUS, memory: process.env.OPEN_RUNTIMES_MEMORY });
