module.exports = async ({ res }) => res.text('Website content');
