// Ten steps of a second each, or of STEP_MS milliseconds.
const pause = Number(process.env.STEP_MS ?? 1000);
let step = 0;
const timer = setInterval(() => {
    console.log(`Step: ${++step}`);
    if (step === 10) clearInterval(timer);
}, pause);
