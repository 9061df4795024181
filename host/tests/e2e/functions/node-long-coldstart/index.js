await new Promise((resolve) => setTimeout(resolve, 10_000));

export default ({ res }) => res.text('OK');
