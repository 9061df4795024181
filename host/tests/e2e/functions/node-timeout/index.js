module.exports = async ({ res }) => {
    await new Promise((resolve) => setTimeout(resolve, 60_000));
    return res.text('OK');
};
